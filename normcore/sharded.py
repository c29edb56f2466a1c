"""Tensors of which each process holds a part: the DTensors that parameters are under FSDP2 (`fully_shard`).

They are known by their methods, so that torch.distributed.tensor, slow to import, is only there when used.
Parts may be of different sizes, and empty.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor."""
    return hasattr(type(tensor), "full_tensor")


def whole(tensor: Any) -> Tensor:
    """The whole detached tensor; all processes must ask. An ordinary one shares its memory."""
    detached = tensor.detach()
    return detached.full_tensor() if is_sharded(detached) else detached  # type: ignore[no-any-return]


def parts(tensors: Sequence[Any]) -> list[Tensor]:
    """What this process holds of each tensor, sharing its memory."""
    return [t.to_local() if is_sharded(t) else t for t in tensors]


def part_of_gradient(param: Any) -> Tensor | None:
    """What this process holds of the parameter's gradient, laid out as the parameter is."""
    grad = param.grad
    if grad is None or not is_sharded(grad):
        return grad  # type: ignore[no-any-return]
    if grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    return grad.to_local()  # type: ignore[no-any-return]


def reshard(model: nn.Module) -> None:
    """Drop the whole weights that FSDP keeps after a forward pass: shards may change, and be more precise."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    for module in model.modules():
        drop = getattr(type(module), "reshard", None)
        if callable(drop) and hasattr(type(module), "unshard"):
            drop(module)


class Totals:
    """Sums over whole tensors, from the sums over the parts.

    One all-reduce adds up all tensors that are sharded alike; what is replicated is counted once. All
    processes must ask for the same sums in the same order.
    """

    def __init__(self, tensors: Sequence[Any]) -> None:
        self.columns: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
        for column, tensor in enumerate(tensors):
            if not is_sharded(tensor):
                continue
            axes = tuple(i for i, placement in enumerate(tensor.placements) if not placement.is_replicate())
            self.columns.setdefault((tensor.device_mesh, axes), []).append(column)

    def __call__(self, values: Tensor) -> Tensor:
        """Add up (..., tensors) over the processes; the last axis runs over the tensors."""
        if not self.columns:
            return values
        values = values.clone()
        for (mesh, axes), columns in self.columns.items():
            index = torch.tensor(columns, device=values.device)
            total = values.index_select(-1, index).to(mesh.device_type)
            for axis in axes:
                dist.all_reduce(total, group=mesh.get_group(axis))
            values.index_copy_(-1, index, total.to(values.device))
        return values


@torch.no_grad()
def norm_over_parts(tensors: Sequence[Tensor]) -> float:
    """The norm of the tensors, concatenated, which no process gathers; all processes must ask."""
    device = tensors[0].device
    real = (part.abs() if part.is_complex() else part for part in parts(tensors))
    squares = torch.stack([part.double().square().sum().to(device) for part in real])
    return float(Totals(tensors)(squares).sum().sqrt())
