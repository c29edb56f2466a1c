"""The NTK of a net whose samples do not interact, layer by layer: K backward passes, no Jacobian, no graph kept.

Covers Linear, Conv1d/2d, Embedding and the gain and shift of LayerNorm, GroupNorm, RMSNorm and of BatchNorm in eval mode.
Whether the layers found make up the model's kernel is not assumed: one random product is compared with autograd.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from normcore.snapshot import Snapshot, flatten, grad
from normcore.structured_layers import (
    Factors,
    Rows,
    Tokens,
    Unstructured,
    conv_inputs,
    linear_inputs,
    norm_row,
    normalized,
    outputs_of_conv,
    outputs_of_linear,
    prefers_rows,
)

LINEAR, CONV = (nn.Linear,), (nn.Conv1d, nn.Conv2d)
NORM = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
COVERED = (*LINEAR, *CONV, *NORM, nn.Embedding)

MEMORY = 2**31
"""Bytes that the kept factors may take."""


class Use:
    """One call of a layer: its input, and the place in the graph where its output was made."""

    def __init__(self, module: nn.Module, x: Tensor, output: Tensor, edge: GradientEdge) -> None:
        """Hold the call."""
        self.module, self.x, self.shape, self.edge = module, x, output.shape, edge


class StructuredKernel:
    """J J^T (without 1/m) as a sum over layers; `apply` multiplies with u of shape (m, K)."""

    def __init__(self, snapshot: Snapshot, x: Any) -> None:
        """Run the model once, and back once per output.

        Raises:
            Unstructured: a part of the model is not covered; the message says which.

        """
        layers = _layers(snapshot)
        uses: list[Use] = []
        output = _recorded(snapshot, x, layers, uses)
        if not isinstance(output, Tensor) or output.dim() == 0:
            raise Unstructured("an output that is not one tensor")
        self.samples, self.shape = len(output), output.shape
        flat = output.reshape(self.samples, -1)
        self.outputs = flat.shape[1]
        counts = [sum(use.module is other.module for other in uses) for use in uses]
        self.parts: list[Factors | Rows | Tokens] = []
        self._rows: dict[nn.Module, Rows] = {}
        self._left = MEMORY // flat.element_size()
        takers = [_taker(use, self, count) for use, count in zip(uses, counts, strict=True)]
        edges = [use.edge for use in uses]
        for k in range(self.outputs):
            deltas = torch.autograd.grad(flat[:, k].sum(), edges, retain_graph=True, allow_unused=True)
            for use, taker, delta in zip(uses, takers, deltas, strict=True):
                taker(k, delta if delta is not None else flat.new_zeros(use.shape))
        for part in self.parts:
            part.close()
        self._compare(snapshot, flat)

    def apply(self, u: Tensor) -> Tensor:
        """J J^T u."""
        total = torch.zeros_like(u)
        for part in self.parts:
            total += part.apply(u)
        return total

    def keep(self, part: Factors | Rows | Tokens, numbers: int) -> None:
        """Add a part that holds so many numbers."""
        self._left -= numbers
        if self._left < 0:
            raise Unstructured(f"more factors than fit {MEMORY} bytes")
        self.parts.append(part)

    def rows_of(self, module: nn.Module) -> Rows:
        """The rows of a module, one part for all its calls."""
        if module not in self._rows:
            self._rows[module] = Rows()
            size = sum(p.numel() for p in module.parameters(recurse=False) if p.requires_grad)
            self.keep(self._rows[module], self.samples * self.outputs * size)
        return self._rows[module]

    def _compare(self, snapshot: Snapshot, flat: Tensor) -> None:
        """Raise Unstructured unless u.(J J^T u) = |J^T u|^2, the right side by autograd, for a random u."""
        generator = torch.Generator().manual_seed(1)
        u = torch.randn(flat.shape, generator=generator, dtype=torch.float64).to(flat)
        truth = float(flatten(grad(flat, snapshot.tensors, u)).double().pow(2).sum())
        found = float((u * self.apply(u)).double().sum())
        tolerance = 1e-9 if flat.dtype == torch.float64 else 1e-3
        if not abs(found - truth) <= tolerance * abs(truth):
            raise Unstructured(
                f"samples or parameters that interact: a product gives {found:.6g} for {truth:.6g}"
            )


def _layers(snapshot: Snapshot) -> list[nn.Module]:
    """The modules that own the trainable parameters, after checking that each is covered and owned once."""
    owners: dict[int, list[nn.Module]] = {}
    for module in snapshot.model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                if type(module) not in COVERED or name not in ("weight", "bias"):
                    raise Unstructured(f"{name} of a {type(module).__name__}")
                owners.setdefault(id(parameter), []).append(module)
    if any(len(modules) > 1 for modules in owners.values()):
        raise Unstructured("a parameter shared by two layers")
    layers = list(dict.fromkeys(modules[0] for modules in owners.values()))
    for module in layers:
        if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
            raise Unstructured("an Embedding with max_norm or scale_grad_by_freq")
    return layers


def _recorded(snapshot: Snapshot, x: Any, layers: list[nn.Module], uses: list[Use]) -> Any:
    """The model's output, with every call of the layers noted."""

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) != 1 or not isinstance(output, Tensor) or not output.requires_grad:
            raise Unstructured(f"a call of a {type(module).__name__} with other arguments")
        uses.append(Use(module, args[0].detach(), output, get_gradient_edge(output)))

    handles = [module.register_forward_hook(note, prepend=True) for module in layers]
    try:
        return snapshot.call(x)
    finally:
        for handle in handles:
            handle.remove()


def _taker(use: Use, kernel: "StructuredKernel", count: int) -> Callable[[int, Tensor], None]:
    """A function that takes (k, delta) of this call, one output after the other."""
    module, samples = use.module, kernel.samples
    if use.x.dim() == 0 or len(use.x) % samples:
        raise Unstructured(f"a {type(module).__name__} whose input does not begin with the samples")
    if isinstance(module, nn.Embedding):
        if count > 1:
            raise Unstructured("an Embedding that is called twice")
        tokens = Tokens(use.x.reshape(samples, -1), module.num_embeddings, module.padding_idx)
        kernel.keep(tokens, kernel.outputs * use.shape.numel())
        return lambda k, delta: tokens.add(delta.reshape(samples, -1, delta.shape[-1]))
    if isinstance(module, NORM):
        normal, rows = normalized(module, use.x), kernel.rows_of(module)
        return lambda k, delta: rows.add(k, norm_row(module, normal, delta, samples))
    read, turn = (
        (linear_inputs, outputs_of_linear) if isinstance(module, LINEAR) else (conv_inputs, outputs_of_conv)
    )
    x = _with_ones(module, read(module, use.x, samples))
    groups = x.shape[1]
    if count > 1 or prefers_rows(kernel.outputs, x.shape[2], x.shape[3]):
        rows = kernel.rows_of(module)
        return lambda k, delta: rows.add(k, (turn(delta, samples, groups).transpose(2, 3) @ x).flatten(1))
    factors = Factors(x)
    kernel.keep(factors, x.numel() + kernel.outputs * use.shape.numel())
    return lambda k, delta: factors.add(turn(delta, samples, groups))


def _with_ones(module: nn.Module, x: Tensor) -> Tensor:
    """The inputs of the trainable parts of a layer: x for the weight, 1 for the bias."""
    parts = [x] if module.weight.requires_grad else []
    if module.bias is not None and module.bias.requires_grad:
        parts.append(x.new_ones(*x.shape[:-1], 1))
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
