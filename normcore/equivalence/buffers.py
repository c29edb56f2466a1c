"""The buffers of a torch optimizer that scale with the gradients, and a stock optimizer along a computed schedule."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from normcore.equivalence.schedule import EquivalentSchedule

BUFFER_DEGREES = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
"""The optimizer buffers that scale with the gradients, and the degree to which they do."""


def alike(tensors: list[Tensor]) -> list[list[int]]:
    """Positions by kind: torch's functions of lists refuse those that mix plain and sharded, dense and sparse."""
    kinds: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        kinds.setdefault((getattr(tensor, "device_mesh", None), tensor.is_sparse), []).append(i)
    return list(kinds.values())


@torch.no_grad()
def multiply(tensors: list[Tensor], factor: float) -> None:
    """Multiply in place."""
    for rows in alike(tensors):
        torch._foreach_mul_([tensors[i] for i in rows], factor)


@torch.no_grad()
def scale_buffers(optimizer: Optimizer, params: list[Tensor], factor: float) -> None:
    """Multiply each buffer of degree r of these parameters by factor^r."""
    if factor == 1.0:
        return
    for name, degree in BUFFER_DEGREES.items():
        buffers = [
            optimizer.state[p][name] for p in params if optimizer.state.get(p, {}).get(name) is not None
        ]
        multiply(buffers, factor**degree)


@torch.no_grad()
def shift_buffer(optimizer: Optimizer, params: list[Tensor], coefficient: float) -> None:
    """Add coefficient * theta~ to the momentum buffer, creating it where there is none yet."""
    for p in params:
        buffer = optimizer.state[p].get("momentum_buffer")
        if buffer is None:
            optimizer.state[p]["momentum_buffer"] = p.detach() * coefficient
        elif buffer.is_sparse:
            optimizer.state[p]["momentum_buffer"] = buffer.to_dense().add_(p.detach(), alpha=coefficient)
        else:
            buffer.add_(p.detach(), alpha=coefficient)


def follow(optimizer: Optimizer, schedule: EquivalentSchedule, t: int) -> None:
    """Prepare a stock optimizer for step t of the run without weight decay; call it before `optimizer.step()`.

    Multiplies the momentum buffer by the gains, adds the correction where there is one, and sets lr, momentum
    and weight_decay=0. Where some groups are tagged `scale_invariant=True` only those follow; otherwise all
    do. Needs the whole schedule in the float range; `ExpLR` does not.

    Args:
        optimizer: SGD with the momentum and nesterov flag of the original run, or AdamW.
        schedule: from `equivalent_schedule`, `texp` and so on.
        t: the step, 0 <= t < schedule.steps; every step must be followed, in order.

    Raises:
        ValueError: t is out of range.
        OverflowError: the rate exceeds the float range.

    Example:
        >>> import torch
        >>> from normcore.equivalence.theorems import texp_plus_plus
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0, momentum=0.9)
        >>> follow(optimizer, texp_plus_plus(0.1, 0.5, 0.9, steps=2), 0)
        >>> round(optimizer.param_groups[0]["lr"], 6), optimizer.param_groups[0]["weight_decay"]
        (0.105263, 0.0)

    Source: Li & Arora (2020), arXiv 1910.07454, Theorems 2.12 and 2.13.

    """
    if not 0 <= t < schedule.steps:
        raise ValueError(f"t must be in [0, {schedule.steps}), got {t!r}")
    lr = math.exp(schedule.log_lr[t])
    groups = [g for g in optimizer.param_groups if g.get("scale_invariant")] or optimizer.param_groups
    params = [p for group in groups for p in group["params"]]
    if t > 0:
        scale_buffers(optimizer, params, float(schedule.gain_after[t - 1]))
    if t in schedule.corrections:
        shift_buffer(optimizer, params, schedule.corrections[t])
    scale_buffers(optimizer, params, float(schedule.gain_before[t]))
    for group in groups:
        group.update(lr=lr, weight_decay=0.0)
        if "momentum" in group:
            group["momentum"] = float(schedule.momentum[t])
