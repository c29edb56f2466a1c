"""Many small nets side by side as one: weights with a leading axis over the runs.

Statistics over seeds, schedules and initial states need tens of runs. For nets this small nearly all the time of
a step is overhead, and one batched product for all runs pays it once.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from normcore.checks import (
    checked_choice,
    checked_count,
    checked_counts,
    checked_number,
    checked_seed,
    real_tensor,
    require_examples,
    require_flags,
    require_type,
)
from normcore.lab.nets.layers import ACTIVATIONS, SMALLEST_EPS, require_precision

StackProbe = Callable[[Any], Tensor]

DEFAULTS = {"standard": ("layer", "leaky_relu"), "ntk": ("none", "relu")}
"""Parametrization -> its norm and activation."""

GAINS = {"relu": 2**0.5, "leaky_relu": (2 / 1.04) ** 0.5, "tanh": 1.0, "identity": 1.0}
"""Factors that keep the size of the activations through the layers of NTK parametrization."""


class Stack(nn.Module):
    """R multilayer perceptrons of one shape side by side, each a net of its own.

    In the standard parametrization weights are N(0, 1/fan_in), and after linear-norm-activation layers comes a frozen
    random head: scale-invariant in the trained weights of each run, like `mlp`. In NTK parametrization weights are
    N(0, 1), the factors gain/sqrt(fan_in) stand in the forward pass, and the last layer is trained like the others.

    Args:
        sizes: (inputs, hidden, ..., outputs).
        seeds: one for each run, of all its weights; equal seeds are equal nets.
        parametrization: "standard" or "ntk".
        norm: "layer", "batch" (over the run's batch) or "none"; by default "layer", and "none" with "ntk".
        activation: as in `mlp`; by default "leaky_relu", which keeps units alive where relu kills some for good, and
            "relu" with "ntk".
        head_scale: factor on the weights of the last layer.
        shared_head: the last layer of the first seed for all runs.
        antisymmetric: pairs the units of the last hidden layer, equal weights in and opposite weights out, so that
            f = 0 at the start and the kernel is that of an ordinary net.
        dtype: float32 or float64.

    Attributes:
        weights: the trained layers, (R, fan_in, fan_out) each.
        head: the frozen last layer, (R, fan_in, outputs), or None with "ntk".

    Raises:
        ValueError: an argument is none of these, or `antisymmetric` has an odd last width.

    Example:
        >>> stack = Stack((64, 16, 10), seeds=range(3))
        >>> stack(torch.randn(3, 5, 64)).shape, stack(torch.randn(5, 64)).shape  # own inputs, or common ones
        (torch.Size([3, 5, 10]), torch.Size([3, 5, 10]))

    Source: "ntk": Jacot et al. (2018), arXiv 1806.07572; Lewkowycz et al. (2020), arXiv 2003.02218.

    """

    head: Tensor | None

    def __init__(
        self,
        sizes: Sequence[int],
        seeds: Sequence[int],
        *,
        parametrization: str = "standard",
        norm: str | None = None,
        activation: str | None = None,
        head_scale: float = 1.0,
        shared_head: bool = False,
        antisymmetric: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        defaults = DEFAULTS[checked_choice("parametrization", parametrization, sorted(DEFAULTS))]
        norm = checked_choice("norm", defaults[0] if norm is None else norm, ("layer", "batch", "none"))
        activation = defaults[1] if activation is None else activation
        checked_choice("activation", activation, sorted(ACTIVATIONS))
        require_flags(shared_head=shared_head, antisymmetric=antisymmetric)
        require_precision(dtype)
        sizes, head_scale = checked_counts("sizes", sizes), checked_number("head_scale", head_scale)
        if len(sizes) < 3:
            raise ValueError(f"sizes must be (inputs, hidden, ..., outputs), got {sizes}")
        require_type("seeds", seeds, Iterable, "a list of seeds")
        seeds = [checked_seed(seed, "seeds") for seed in seeds]
        if not seeds:
            raise ValueError("seeds must name at least one run, got none")
        if antisymmetric and sizes[-2] % 2:
            raise ValueError(f"sizes must have an even last width to be antisymmetric, got {sizes[-2]}")
        self.norm, self.activation, self.eps = norm, ACTIVATIONS[activation](), SMALLEST_EPS[dtype]
        self.gain = GAINS[activation] if parametrization == "ntk" else None
        drawn = [_draw(sizes, seed, dtype) for seed in seeds]
        layers = [torch.stack(layer) for layer in zip(*drawn, strict=True)]
        if self.gain is None:
            layers = [w / math.sqrt(w.shape[1]) for w in layers]
        if shared_head:
            layers[-1] = layers[-1][:1].repeat(len(seeds), 1, 1)
        if antisymmetric:
            half = sizes[-2] // 2
            layers[-2][..., half:] = layers[-2][..., :half]
            layers[-1][:, half:] = -layers[-1][:, :half]
        layers[-1] *= head_scale
        self.weights = nn.ParameterList(layers[:-1] if self.gain is None else layers)
        self.register_buffer("head", layers[-1] if self.gain is None else None)

    @property
    def runs(self) -> int:
        """How many nets there are."""
        return len(self.weights[0])

    def forward(self, x: Tensor, own: bool | None = None) -> Tensor:
        """Compute the outputs (R, B, outputs) for inputs (B, ...) common to all runs, or (R, B, ...) of each run.

        `own` says whether they are of each run; only a shape that fits both needs it, as (R, 1, 8, 8) for 64 inputs.

        Raises:
            ValueError: the shape fits neither, or both.

        """
        return self.layers(x, own)[1][-1]

    def layers(self, x: Tensor, own: bool | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """List what enters each linear layer, (R, B, fan_in), with its factor of NTK parametrization, and what leaves it,
        (R, B, fan_out), before norm and activation; what leaves the last are the outputs. Inputs as in `forward`.
        """
        h, enters, leaves = self._rows(x, own), list[Tensor](), list[Tensor]()
        layers = [*self.weights] if self.head is None else [*self.weights, self.head]
        for w in layers:
            if leaves:
                h = self.activation(self._normalize(leaves[-1]))
            if self.gain is not None:
                h = h * ((1.0 if w is layers[-1] else self.gain) / w.shape[1] ** 0.5)
            enters.append(h)
            leaves.append(torch.bmm(h, w))
        return enters, leaves

    def _rows(self, x: Tensor, own: bool | None) -> Tensor:
        require_type("x", x, Tensor, "a tensor")
        require_type("own", own, bool | None, "a bool or None")
        if x.dtype != self.weights[0].dtype or not x.numel():
            raise ValueError(
                f"x must be {self.weights[0].dtype} and not empty, got {x.dtype} of {tuple(x.shape)}"
            )
        runs, inputs = self.weights[0].shape[:2]
        common_fits = x.ndim > 1 and x.shape[1:].numel() == inputs
        own_fits = x.ndim > 2 and len(x) == runs and x.shape[2:].numel() == inputs
        if own is None and common_fits and own_fits and runs > 1:  # one run gets the same rows either way
            both = f"{runs} examples common to all runs, or one for each: say own=True or own=False"
            raise ValueError(f"x must not fit two readings, got shape {tuple(x.shape)}: {both}")
        own = own_fits if own is None else own
        if not (own_fits if own else common_fits):
            need = f"({runs}, B, ...) of each run" if own else f"(B, ...), or ({runs}, B, ...) of each run,"
            raise ValueError(f"x must be {need} with {inputs} numbers an example, got shape {tuple(x.shape)}")
        return x.flatten(2) if own else x.flatten(1).expand(runs, -1, -1)

    def _normalize(self, h: Tensor) -> Tensor:
        if self.norm == "layer":
            return layer_norm(h, h.shape[-1:], eps=self.eps)
        if self.norm == "batch":
            variance, mean = torch.var_mean(h, dim=1, keepdim=True, correction=0)
            return (h - mean) * (variance + self.eps).rsqrt()
        return h

    def take(self, runs: Sequence[int]) -> "Stack":
        """Copy some of the runs, repeats allowed: `take([0, 0, 1])` makes two arms of the first."""
        chosen = checked_counts("runs", runs, least=0)
        if not chosen or max(chosen) >= self.runs:
            raise ValueError(f"runs must be some of 0 ... {self.runs - 1}, got {chosen}")
        index = torch.tensor(chosen, device=self.weights[0].device)
        part = copy.deepcopy(self)
        part.weights = nn.ParameterList([w.detach()[index] for w in self.weights])
        part.head = None if self.head is None else self.head[index]
        return part

    @torch.no_grad()
    def with_weights(self, vectors: Tensor) -> "Stack":
        """Copy the stack and give run r the trained weights `vectors[r]`, as `stack_weights` lists them.

        Raises:
            ValueError: `vectors` has not the shape of `stack_weights`.

        """
        require_type("vectors", vectors, Tensor, "a tensor")
        need = tuple(stack_weights(self).shape)
        if tuple(vectors.shape) != need:
            raise ValueError(f"vectors must have shape {need}, got {tuple(vectors.shape)}")
        other = copy.deepcopy(self)
        parts = vectors.split([w[0].numel() for w in other.weights], dim=1)
        for w, part in zip(other.weights, parts, strict=True):
            w.copy_(part.reshape(w.shape))
        return other

    @torch.no_grad()
    def scale_(self, factor: float | Tensor) -> "Stack":
        """Multiply all trained weights, by one factor or one for each run, and return the stack itself."""
        each = real_tensor("factor", factor)
        if each.shape not in ((), (self.runs,)):
            raise ValueError(f"factor must be a number or {self.runs} of them, got shape {tuple(each.shape)}")
        for w in self.weights:
            w.mul_(each.to(w).reshape(-1, 1, 1))
        return self


def _draw(sizes: Sequence[int], seed: int, dtype: torch.dtype) -> list[Tensor]:
    """N(0, 1) weights of one net, drawn on the CPU so that a seed means the same net on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(a, b, generator=generator, dtype=dtype) for a, b in itertools.pairwise(sizes)]


@torch.no_grad()
def stack_weights(stack: Stack) -> Tensor:
    """Each run's trained weights as one vector, (R, n): a probe for `descend`."""
    require_type("stack", stack, Stack, "a Stack")
    return torch.cat([w.flatten(1) for w in stack.weights], dim=1)


def stack_norms(stack: Stack) -> Tensor:
    """|theta| of each run, (R,) float64: a probe for `descend`."""
    norms: Tensor = torch.linalg.vector_norm(stack_weights(stack).double(), dim=1)
    return norms


@torch.no_grad()
def stack_predictions(stack: Stack, x: Tensor) -> Tensor:
    """The label that each run gives to each input (N, ...), (R, N)."""
    require_type("stack", stack, Stack, "a Stack")
    output: Tensor = stack(x, own=False)
    return output.argmax(dim=2)


def stack_accuracy_on(x: Tensor, y: Tensor) -> StackProbe:
    """Make a probe: the accuracy of each run on fixed inputs (N, ...) with labels (N,), (R,) float64."""
    require_examples(x, y)
    return lambda stack: (stack_predictions(stack, x) == y).double().mean(dim=1)


def wide_kernel(nets: Stack, x: Tensor) -> Tensor:
    """Compute the tangent kernel J J^T / m of each of R runs over all outputs, exactly, layer by layer.

    Of m inputs, as in `Stack.forward`, it is (R, m K, m K), the K outputs of an input next to each other.

    Raises:
        ValueError: the norm is "batch", which couples the inputs of a batch.

    Example:
        >>> wide_kernel(Stack((3, 8, 2), seeds=[0], parametrization="ntk"), torch.randn(4, 3)).shape
        torch.Size([1, 8, 8])

    """
    require_type("nets", nets, Stack, "a Stack")
    if nets.norm == "batch":
        raise ValueError(
            "nets must not have norm 'batch', which couples the inputs of a batch, got one that has"
        )
    enters, leaves = nets.layers(x)
    outputs, trained = leaves[-1], range(len(nets.weights))
    runs, m, classes = outputs.shape
    inner = [leaves[i] for i in trained]
    sums = [outputs[:, :, k].sum() for k in range(classes)]
    returns = [torch.autograd.grad(total, inner, retain_graph=True) for total in sums]
    kernel = outputs.new_zeros(runs, m, classes, m, classes)
    for i in trained:
        # An output's gradient in a linear layer is the outer product of what enters and what comes back, so that
        # inner products of gradients are products, entry by entry, of these two Gram matrices.
        gram = torch.bmm(enters[i], enters[i].transpose(1, 2)).detach()
        back = torch.stack([returned[i] for returned in returns], dim=2).flatten(1, 2)
        product = torch.bmm(back, back.transpose(1, 2)).view(runs, m, classes, m, classes)
        kernel += gram[:, :, None, :, None] * product
    return kernel.view(runs, m * classes, m * classes) / m


def wide_curvature(nets: Stack, x: Tensor, iterations: int = 60) -> Tensor:
    """Find the top eigenvalue of each run's `wide_kernel`, (R,), by `top_eigenpair`."""
    return top_eigenpair(wide_kernel(nets, x), iterations)[0]


def top_eigenpair(kernel: Tensor, iterations: int = 60) -> tuple[Tensor, Tensor]:
    """Iterate positive semi-definite matrices (R, N, N) to their top eigenvalues (R,) and unit vectors (R, N).

    Relative error of the value about the squared ratio of the first two eigenvalues to the power `iterations`.

    Example:
        >>> value, vector = top_eigenpair(torch.diag(torch.tensor([3.0, 1.0, 0.5])).expand(2, 3, 3))
        >>> [round(v, 5) for v in value.tolist()]
        [3.0, 3.0]

    """
    require_type("kernel", kernel, Tensor, "a tensor")
    if kernel.ndim != 3 or kernel.shape[1] != kernel.shape[2] or not kernel.numel():
        raise ValueError(f"kernel must have shape (R, N, N), got {tuple(kernel.shape)}")
    checked_count("iterations", iterations)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(kernel.shape[-1], 1, generator=generator, dtype=kernel.dtype)
    vector = start.to(kernel.device).expand(len(kernel), -1, -1)
    for _ in range(iterations):
        vector = torch.bmm(kernel, vector)
        vector = vector / vector.norm(dim=1, keepdim=True).clamp_min(SMALLEST_EPS[kernel.dtype])
    value = (vector * torch.bmm(kernel, vector)).sum(dim=(1, 2))
    return value, vector[:, :, 0]
