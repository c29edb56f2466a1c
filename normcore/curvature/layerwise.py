"""The NTK of a net whose samples do not interact, layer by layer: K backward passes, no Jacobian, no graph kept.

Covers Linear, Conv1d/2d, Embedding and the gain and shift of LayerNorm, GroupNorm, RMSNorm and of BatchNorm in eval mode.
Whether the layers found make up the model's kernel is not assumed: one random product is compared with autograd.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional

from normcore.curvature.snapshot import Snapshot, flatten, grad

SLOW = 20.0
"""Arithmetic operations in the time that one number takes to come from memory."""

PRODUCTS = 15.0
"""Products that an eigenvalue takes, for the choice between the two ways."""


class Unstructured(Exception):  # noqa: N818 - a verdict that is caught, not a failure
    """The model has a part that the structured kernel does not cover."""


def vecdot(a: Tensor, b: Tensor) -> Tensor:
    """Sums of products over the last axis: several times faster than bmm with vectors."""
    total: Tensor = torch.linalg.vecdot(a, b)
    return total


class Factors:
    """Keeps delta (m, K, g, S, out) and x (g, m S, in); the products go through W or through the Gram matrix."""

    def __init__(self, x: Tensor) -> None:
        """Hold the inputs (m, g, S, in)."""
        self.x = x.transpose(0, 1).flatten(1, 2).contiguous()
        self.deltas: list[Tensor] = []
        _, positions, inputs = self.x.shape
        self.gram = self.x @ self.x.transpose(1, 2) if positions < 2 * inputs else None

    def add(self, delta: Tensor) -> None:
        """Take the delta (m, g, S, out) of the next output."""
        self.deltas.append(delta)

    def close(self) -> None:
        """Stack what came."""
        self.delta = torch.stack(self.deltas, dim=1)
        self.deltas = []

    def apply(self, u: Tensor) -> Tensor:
        """The layer's part of the kernel times u (m, K)."""
        m, _, g, s, out = self.delta.shape
        rows = self.delta.flatten(2)
        mixed = torch.bmm(u[:, None], rows).view(m, g, s, out).transpose(0, 1).reshape(g, m * s, out)
        moved = self.gram @ mixed if self.gram is not None else self.x @ (self.x.transpose(1, 2) @ mixed)
        moved = moved.view(g, m, s, out).transpose(0, 1).reshape(m, 1, -1)
        return vecdot(rows, moved)


class Rows:
    """Keeps the gradients of every output, (m, K, parameters); uses of one parameter add up."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, k: int, row: Tensor) -> None:
        """Add a call's gradients (m, parameters) of output k."""
        if k == len(self.rows):
            self.rows.append(row)
        else:
            self.rows[k] = self.rows[k] + row

    def close(self) -> None:
        """Stack what came."""
        self.matrix = torch.stack(self.rows, dim=1).flatten(0, 1)
        self.rows = []

    def apply(self, u: Tensor) -> Tensor:
        """The layer's part of the kernel times u (m, K)."""
        return (self.matrix @ (u.flatten() @ self.matrix)).view_as(u)


class Tokens:
    """An embedding: keeps delta (m, K, S, E) and the token numbers (m, S)."""

    def __init__(self, tokens: Tensor, rows: int, padding: int | None) -> None:
        """Hold the tokens; the padding row has no gradient."""
        self.tokens, self.count = tokens.flatten(), rows
        self.deltas: list[Tensor] = []
        self.live = None if padding is None else (tokens != padding)

    def add(self, delta: Tensor) -> None:
        """Take the delta (m, S, E) of the next output."""
        self.deltas.append(delta if self.live is None else delta * self.live[..., None])

    def close(self) -> None:
        """Stack what came."""
        self.delta = torch.stack(self.deltas, dim=1)
        self.deltas = []

    def apply(self, u: Tensor) -> Tensor:
        """The layer's part of the kernel times u (m, K)."""
        m, _, s, e = self.delta.shape
        mixed = torch.bmm(u[:, None], self.delta.flatten(2)).view(m * s, e)
        table = mixed.new_zeros(self.count, e).index_add_(0, self.tokens, mixed)
        return vecdot(self.delta.flatten(2), table[self.tokens].view(m, 1, s * e))


def prefers_rows(outputs: int, positions: int, inputs: int) -> bool:
    """Whether keeping gradients beats keeping factors, by the cost of the products that an eigenvalue takes."""
    rows = 2 * SLOW * outputs * inputs + 2 * outputs * positions * inputs / PRODUCTS
    return rows < 4 * positions * inputs + 2 * SLOW * outputs * positions


def linear_inputs(module: Any, x: Tensor, samples: int) -> Tensor:
    """The input of a Linear as (m, 1, S, in)."""
    return x.reshape(samples, 1, -1, x.shape[-1])


def conv_inputs(module: Any, x: Tensor, samples: int) -> Tensor:
    """The patches that a convolution sees, as (m, g, S, in)."""
    if module.padding_mode != "zeros" or x.dim() != len(module.kernel_size) + 2 or len(x) != samples:
        raise Unstructured(f"a {type(module).__name__} with padding_mode={module.padding_mode!r}")
    lift = (1,) * (2 - len(module.kernel_size))
    kernel, stride, dilation = (lift + tuple(v) for v in (module.kernel_size, module.stride, module.dilation))
    padded = functional.pad(x, module._reversed_padding_repeated_twice)
    if lift:
        padded = padded[:, :, None]
    patches = functional.unfold(padded, kernel, dilation=dilation, stride=stride)
    groups: int = module.groups
    return patches.view(samples, groups, -1, patches.shape[-1]).transpose(2, 3)


def outputs_of_linear(delta: Tensor, samples: int, groups: int) -> Tensor:
    """Delta of a Linear as (m, 1, S, out)."""
    return delta.reshape(samples, 1, -1, delta.shape[-1])


def outputs_of_conv(delta: Tensor, samples: int, groups: int) -> Tensor:
    """Delta of a convolution as (m, g, S, out)."""
    return delta.reshape(samples, groups, -1, math.prod(delta.shape[2:])).transpose(2, 3)


def normalized(module: Any, x: Tensor) -> Tensor:
    """The input of a norm layer as it is before gain and shift."""
    match module:
        case nn.LayerNorm():
            return functional.layer_norm(x, module.normalized_shape, eps=module.eps)
        case nn.GroupNorm():
            return functional.group_norm(x, module.num_groups, eps=module.eps)
        case nn.RMSNorm():
            return functional.rms_norm(x, module.normalized_shape, eps=module.eps)
    if (
        not isinstance(module, nn.modules.batchnorm._BatchNorm)
        or module.training
        or module.running_mean is None
    ):
        raise Unstructured(f"a {type(module).__name__} with batch statistics")
    return functional.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)


def norm_row(module: Any, normal: Tensor, delta: Tensor, samples: int) -> Tensor:
    """Gradients of gain and shift, (m, parameters)."""
    weight = module.weight
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        shape: tuple[int, ...] = (samples, -1, weight.numel())
        axis = 1
    else:
        shape, axis = (samples, weight.numel(), -1), 2
    delta, normal = delta.reshape(shape), normal.reshape(shape)
    parts = []
    if weight.requires_grad:
        parts.append((delta * normal).sum(axis))
    if getattr(module, "bias", None) is not None and module.bias.requires_grad:
        parts.append(delta.sum(axis))
    return torch.cat(parts, dim=1)


LINEAR, CONV = (nn.Linear,), (nn.Conv1d, nn.Conv2d)
NORM = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
COVERED = (*LINEAR, *CONV, *NORM, nn.Embedding)

MEMORY = 2**31
"""Bytes that the kept factors may take."""


class Use:
    """One call of a layer: its input, and the place in the graph where its output was made."""

    def __init__(self, module: nn.Module, x: Tensor, output: Tensor, edge: GradientEdge) -> None:
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
