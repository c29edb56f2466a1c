"""The NTK of a net whose samples do not interact, layer by layer: K backward passes, no Jacobian, no graph kept.

Covers Linear, Conv1d/2d, Embedding and the gain and shift of LayerNorm, GroupNorm, RMSNorm and of BatchNorm in eval mode.
Whether the layers found make up the model's kernel is not assumed: one random product is compared with autograd.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call
from torch.nn import functional

from normcore.curvature.snapshot import Snapshot, flatten, grad, uses_batch_statistics

SLOW = 20.0
"""Arithmetic operations in the time that one number takes to come from memory."""

PRODUCTS = 15.0
"""Products that an eigenvalue takes, for the choice between the two ways."""

MEMORY = 2**31
"""Bytes that the kept factors may take."""

CONV = (nn.Conv1d, nn.Conv2d)
NORM = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
COVERED = (nn.Linear, *CONV, *NORM, nn.Embedding)


class Unstructured(Exception):  # noqa: N818 - a verdict that is caught, not a failure
    """The model has a part that the structured kernel does not cover."""


Part = Callable[[Tensor], Tensor]
"""A layer's part of the kernel, as its product with u (m, K); vecdot takes a fraction of the time of bmm."""


def by_factors(x: Tensor, delta: Tensor) -> Part:
    """Of a layer by its inputs (m, g, S, in) and deltas (m, K, g, S, out), through W or the Gram matrix."""
    inputs, rows = x.transpose(0, 1).flatten(1, 2).contiguous(), delta.flatten(2)
    m, _, g, s, out = delta.shape
    gram = inputs @ inputs.transpose(1, 2) if inputs.shape[1] < 2 * inputs.shape[2] else None

    def product(u: Tensor) -> Tensor:
        mixed = torch.bmm(u[:, None], rows).view(m, g, s, out).transpose(0, 1).reshape(g, m * s, out)
        moved = gram @ mixed if gram is not None else inputs @ (inputs.transpose(1, 2) @ mixed)
        back = moved.view(g, m, s, out).transpose(0, 1).reshape(m, 1, -1)
        return torch.linalg.vecdot(rows, back)  # type: ignore[no-any-return]

    return product


def by_rows(gradients: Tensor) -> Part:
    """Of a layer by the gradients of every output, (m, K, parameters)."""
    matrix = gradients.flatten(0, 1)
    return lambda u: (matrix @ (u.flatten() @ matrix)).view_as(u)


def by_tokens(tokens: Tensor, count: int, delta: Tensor) -> Part:
    """Of an embedding by its tokens (m, S) and deltas (m, K, S, E)."""
    place, rows = tokens.flatten(), delta.flatten(2)
    m, _, s, e = delta.shape

    def product(u: Tensor) -> Tensor:
        mixed = torch.bmm(u[:, None], rows).view(m * s, e)
        table = mixed.new_zeros(count, e).index_add_(0, place, mixed)
        return torch.linalg.vecdot(rows, table[place].view(m, 1, s * e))  # type: ignore[no-any-return]

    return product


class Use(NamedTuple):
    """One call of a layer: its input, and the shape and place in the graph of its output."""

    module: nn.Module
    x: Tensor
    shape: torch.Size
    edge: GradientEdge


class Plan(NamedTuple):
    """What is kept of a use: the form of one output's delta, and the part that these forms, stacked, make up."""

    form: Callable[[Tensor], Tensor]
    part: Callable[[Tensor], Part]
    numbers: int


class StructuredKernel:
    """J J^T (without 1/m) as a sum over layers; `apply` multiplies with u of shape (m, K)."""

    def __init__(self, snapshot: Snapshot, x: Any) -> None:
        """Run the model once, and back once per output; Unstructured says which part of it is not covered."""
        layers = _layers(snapshot)
        snapshot.run(lambda model: self._build(snapshot, *_recorded(model, x, layers)))

    def _build(self, snapshot: Snapshot, output: Any, uses: list[Use]) -> None:
        if not isinstance(output, Tensor) or output.dim() == 0:
            raise Unstructured("an output that is not one tensor")
        flat = output.reshape(len(output), -1)
        self.samples, self.outputs = flat.shape
        calls = [use.module for use in uses]
        plans = [_plan(use, self.samples, self.outputs, calls.count(use.module) == 1) for use in uses]
        if sum(plan.numbers for plan in plans) * flat.element_size() > MEMORY:
            raise Unstructured(f"more factors than fit {MEMORY} bytes")
        forms: list[list[Tensor]] = [[] for _ in uses]
        edges = [use.edge for use in uses]
        for k in range(self.outputs):
            deltas = torch.autograd.grad(flat[:, k].sum(), edges, retain_graph=True, allow_unused=True)
            for use, plan, kept, delta in zip(uses, plans, forms, deltas, strict=True):
                kept.append(plan.form(flat.new_zeros(use.shape) if delta is None else delta))
        built: dict[Any, tuple[Plan, Tensor]] = {}
        for i, (use, plan) in enumerate(zip(uses, plans, strict=True)):
            stacked, key = torch.stack(forms.pop(0), dim=1), use.module if plan.part is by_rows else i
            # rows of one layer add up
            built[key] = plan, built[key][1] + stacked if key in built else stacked
        self.parts = [plan.part(stacked) for plan, stacked in built.values()]
        self._compare(snapshot, flat)

    def apply(self, u: Tensor) -> Tensor:
        """J J^T u."""
        total = torch.zeros_like(u)
        for part in self.parts:
            total += part(u)
        return total

    def _compare(self, snapshot: Snapshot, flat: Tensor) -> None:
        """Raise Unstructured unless u.(J J^T u) = |J^T u|^2, the right side by autograd, for a random u."""
        generator = torch.Generator().manual_seed(1)
        u = torch.randn(flat.shape, generator=generator, dtype=torch.float64).to(flat)
        truth = float(flatten(grad(flat, snapshot.tensors, u)).double().pow(2).sum())
        found = float((u * self.apply(u)).double().sum())
        tolerance = 1e-9 if flat.dtype == torch.float64 else 1e-3
        if not abs(found - truth) <= tolerance * abs(truth):
            numbers = f"{found:.6g} for {truth:.6g}"
            raise Unstructured(f"samples or parameters that interact: a product gives {numbers}")


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


def _recorded(model: nn.Module, x: Any, layers: list[nn.Module]) -> tuple[Any, list[Use]]:
    """The model's output, and every call of the layers."""
    uses: list[Use] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) != 1 or not isinstance(output, Tensor) or not output.requires_grad:
            raise Unstructured(f"a call of a {type(module).__name__} with other arguments")
        uses.append(Use(module, args[0].detach(), output.shape, get_gradient_edge(output)))

    with ExitStack() as hooks:
        for module in layers:
            hooks.enter_context(module.register_forward_hook(note, prepend=True))
        return model(x), uses


def _plan(use: Use, samples: int, outputs: int, once: bool) -> Plan:
    """How a call's part of the kernel is kept: by the factors of its gradients where that is cheaper, else by rows."""
    module, x = use.module, use.x
    trained = sum(p.numel() for p in module.parameters(recurse=False) if p.requires_grad)
    as_factors, as_rows = outputs * use.shape.numel(), samples * outputs * trained
    if x.dim() == 0 or len(x) % samples:
        raise Unstructured(f"a {type(module).__name__} whose input does not begin with the samples")
    if isinstance(module, nn.Embedding):
        if not once:
            raise Unstructured("an Embedding that is called twice")
        tokens = x.reshape(samples, -1)
        live = 1 if module.padding_idx is None else (tokens != module.padding_idx)[..., None]
        form = lambda delta: delta.reshape(samples, -1, delta.shape[-1]) * live  # noqa: E731
        return Plan(form, partial(by_tokens, tokens, module.num_embeddings), as_factors)
    if isinstance(module, NORM):
        return Plan(partial(norm_row, module, normalized(module, x), samples), by_rows, as_rows)
    patches, turn = with_ones(module, inputs_of(module, x, samples)), partial(deltas_of, module, samples)
    if once and not prefers_rows(outputs, *patches.shape[2:]):
        return Plan(turn, partial(by_factors, patches), patches.numel() + as_factors)
    return Plan(lambda delta: (turn(delta).transpose(2, 3) @ patches).flatten(1), by_rows, as_rows)


def prefers_rows(outputs: int, positions: int, inputs: int) -> bool:
    """Whether keeping gradients beats keeping factors, by the cost of the products that an eigenvalue takes."""
    rows = 2 * SLOW * outputs * inputs + 2 * outputs * positions * inputs / PRODUCTS
    return rows < 4 * positions * inputs + 2 * SLOW * outputs * positions


def inputs_of(module: Any, x: Tensor, samples: int) -> Tensor:
    """What a Linear or each position of a convolution sees, as (m, g, S, in)."""
    if isinstance(module, nn.Linear):
        return x.reshape(samples, 1, -1, x.shape[-1])
    if module.padding_mode != "zeros" or x.dim() != len(module.kernel_size) + 2 or len(x) != samples:
        raise Unstructured(f"a {type(module).__name__} with padding_mode={module.padding_mode!r}")
    lift = (1,) * (2 - len(module.kernel_size))
    kernel, stride, dilation = (lift + tuple(v) for v in (module.kernel_size, module.stride, module.dilation))
    padded = functional.pad(x, module._reversed_padding_repeated_twice)
    if lift:
        padded = padded[:, :, None]
    patches = functional.unfold(padded, kernel, dilation=dilation, stride=stride)
    return patches.view(samples, module.groups, -1, patches.shape[-1]).transpose(2, 3)


def deltas_of(module: Any, samples: int, delta: Tensor) -> Tensor:
    """Delta of a Linear or a convolution as (m, g, S, out)."""
    if isinstance(module, nn.Linear):
        return delta.reshape(samples, 1, -1, delta.shape[-1])
    return delta.reshape(samples, module.groups, -1, math.prod(delta.shape[2:])).transpose(2, 3)


def with_ones(module: Any, x: Tensor) -> Tensor:
    """The inputs of the trainable parts of a layer: x for the weight, 1 for the bias."""
    parts = [x] if module.weight.requires_grad else []
    if module.bias is not None and module.bias.requires_grad:
        parts.append(x.new_ones(*x.shape[:-1], 1))
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def normalized(module: Any, x: Tensor) -> Tensor:
    """The input of a norm layer as it is before gain and shift: the layer at gain 1 and shift 0."""
    if uses_batch_statistics(module):
        raise Unstructured(f"a {type(module).__name__} with batch statistics")
    plain = {name: torch.full_like(p, float(name == "weight")) for name, p in module.named_parameters()}
    with torch.no_grad():
        normal: Tensor = functional_call(module, plain, (x,))
    return normal


def norm_row(module: Any, normal: Tensor, samples: int, delta: Tensor) -> Tensor:
    """Gradients of gain and shift, (m, parameters)."""
    # their gains run over the last axes, the others' over channels
    last, size = isinstance(module, nn.LayerNorm | nn.RMSNorm), module.weight.numel()
    shape, axis = ((samples, -1, size), 1) if last else ((samples, size, -1), 2)
    delta, normal = delta.reshape(shape), normal.reshape(shape)
    parts = [(delta * normal).sum(axis)] if module.weight.requires_grad else []
    if getattr(module, "bias", None) is not None and module.bias.requires_grad:
        parts.append(delta.sum(axis))
    return torch.cat(parts, dim=1)
