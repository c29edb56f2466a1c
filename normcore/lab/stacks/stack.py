"""Many small nets side by side as one: weights with a leading axis over the runs.

Statistics over seeds, schedules and initial states need tens of runs. For nets this small nearly all the time of
a step is overhead, and one batched product for all runs pays it once.
"""

import copy
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from normcore.lab.nets.layers import ACTIVATIONS, SMALLEST_EPS

StackProbe = Callable[["Stack"], Tensor]


class Stack(nn.Module):
    """R multilayer perceptrons side by side: linear-norm-activation, then a frozen random head.

    Scale-invariant in the trained weights of each run, like `mlp`.

    Args:
        sizes: (inputs, hidden, ..., classes).
        seeds: one for each run; a seed draws the weights and the head.
        norm: "layer", "batch" (over the run's batch) or "none".
        activation: as in `mlp`; leaky_relu keeps units alive where relu kills some for good.
        head_scale: factor on the head's N(0, 1/fan_in) weights.
        shared_head: one head for all runs, that of the first seed.
        dtype: float32 or float64.

    Raises:
        ValueError: a name is unknown, sizes has fewer than three entries, or there is no seed.

    Example:
        >>> stack = Stack((64, 16, 10), seeds=range(3))
        >>> stack(torch.randn(3, 5, 64)).shape, stack(torch.randn(5, 64)).shape  # own inputs, or common ones
        (torch.Size([3, 5, 10]), torch.Size([3, 5, 10]))

    """

    head: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        seeds: Sequence[int],
        *,
        norm: str = "layer",
        activation: str = "leaky_relu",
        head_scale: float = 1.0,
        shared_head: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Draw each run's weights from its own seed."""
        super().__init__()
        if len(sizes) < 3:
            raise ValueError(f"sizes must be (inputs, hidden, ..., classes), got {tuple(sizes)}")
        if norm not in ("layer", "batch", "none"):
            raise ValueError(f"norm must be 'layer', 'batch' or 'none', got {norm!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
        if not len(seeds):
            raise ValueError("seeds must name at least one run, got none")
        drawn = [_draw(sizes, int(seed), dtype) for seed in seeds]
        self.norm, self.activation, self.eps = norm, ACTIVATIONS[activation](), SMALLEST_EPS[dtype]
        layers = [torch.stack(layer) for layer in zip(*drawn, strict=True)]
        self.weights = nn.ParameterList(layers[:-1])
        head = head_scale * (layers[-1][:1].expand_as(layers[-1]) if shared_head else layers[-1])
        self.register_buffer("head", head.clone())

    @property
    def runs(self) -> int:
        """How many nets there are."""
        return len(self.weights[0])

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (R, B, classes) for inputs (R, B, ...), or for (B, ...) common to all runs."""
        own = x.ndim > 2 and len(x) == self.runs and x.shape[2:].numel() == self.weights[0].shape[1]
        h = x.flatten(2) if own else x.flatten(1).expand(self.runs, -1, -1)
        for w in self.weights:
            h = self.activation(self._normalize(torch.bmm(h, w)))
        return torch.bmm(h, self.head)

    def _normalize(self, h: Tensor) -> Tensor:
        """Over the features of each example, over each run's batch, or not at all."""
        if self.norm == "layer":
            return layer_norm(h, h.shape[-1:], eps=self.eps)
        if self.norm == "batch":
            variance, mean = torch.var_mean(h, dim=1, keepdim=True, correction=0)
            return (h - mean) * (variance + self.eps).rsqrt()
        return h

    def take(self, runs: Sequence[int]) -> "Stack":
        """Copy some of the runs, repeats allowed: `take([0, 0, 1])` makes two arms of the first."""
        index = torch.as_tensor(list(runs))
        part = copy.deepcopy(self)
        part.weights = nn.ParameterList([w.detach()[index].clone() for w in self.weights])
        part.register_buffer("head", self.head[index].clone())
        return part

    @torch.no_grad()
    def with_weights(self, vectors: Tensor) -> "Stack":
        """Copy the stack and give run r the trained weights `vectors[r]`, as `stack_weights` lists them.

        Raises:
            ValueError: `vectors` has not the shape of `stack_weights`.

        """
        need = tuple(stack_weights(self).shape)
        if tuple(vectors.shape) != need:
            raise ValueError(f"vectors must have shape {need}, got {tuple(vectors.shape)}")
        other = self.take(range(self.runs))
        parts = vectors.split([w[0].numel() for w in other.weights], dim=1)
        for w, part in zip(other.weights, parts, strict=True):
            w.copy_(part.reshape(w.shape))
        return other

    @torch.no_grad()
    def scale_(self, factor: float | Tensor) -> "Stack":
        """Multiply all trained weights, by one factor or one for each run."""
        for w in self.weights:
            w.mul_(torch.as_tensor(factor, dtype=w.dtype).reshape(-1, 1, 1))
        return self


def _draw(sizes: Sequence[int], seed: int, dtype: torch.dtype) -> list[Tensor]:
    """N(0, 1/fan_in) weights, the head last."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(a, b, generator=generator, dtype=dtype) / math.sqrt(a)
        for a, b in itertools.pairwise(sizes)
    ]


@torch.no_grad()
def stack_weights(stack: Stack) -> Tensor:
    """Each run's trained weights as one vector, (R, n): a probe for `train_stack`."""
    return torch.cat([w.detach().flatten(1) for w in stack.weights], dim=1)


def stack_norms(stack: Stack) -> Tensor:
    """|theta| of each run, (R,): a probe for `train_stack`."""
    norms: Tensor = torch.linalg.vector_norm(stack_weights(stack).double(), dim=1)
    return norms


def stack_loss_on(x: Tensor, y: Tensor) -> StackProbe:
    """Make a probe: the cross-entropy of each run on fixed inputs, (R,)."""
    return lambda stack: stack_losses(stack(x), y.expand(stack.runs, -1)).detach()


def stack_accuracy_on(x: Tensor, y: Tensor) -> StackProbe:
    """Make a probe: the accuracy of each run on fixed inputs, (R,)."""
    return lambda stack: (stack_predictions(stack, x) == y).double().mean(dim=1)


@torch.no_grad()
def stack_predictions(stack: Stack, x: Tensor) -> Tensor:
    """The label that each run gives to each input, (R, N)."""
    output: Tensor = stack(x)
    return output.argmax(dim=2)


def stack_losses(output: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy of each run, (R,), for outputs (R, B, classes) and labels (R, B)."""
    each = cross_entropy(output.flatten(0, 1), y.flatten(), reduction="none")
    return each.view(y.shape).mean(dim=1)


GAINS = {"relu": 2**0.5, "tanh": 1.0, "identity": 1.0}
"""Factors g that keep the size of the activations through ReLU layers."""


class WideStack(nn.Module):
    """R fully connected nets of one shape in NTK parametrisation.

    Args:
        sizes: (inputs, hidden, ..., outputs).
        seeds: one for each run; equal seeds are equal nets.
        activation: "relu", "tanh" or "identity".
        antisymmetric: pairs the hidden units of the last hidden layer, equal weights in and opposite weights out, so that
            f = 0 at the start and the kernel is that of an ordinary net.
        dtype: float32 or float64.

    Raises:
        ValueError: the activation is unknown, sizes has fewer than three entries, there is no seed, or
            `antisymmetric` has an odd last width.

    Example:
        >>> nets = WideStack((64, 256, 1), seeds=[0, 0, 1])
        >>> nets(torch.randn(5, 64)).shape
        torch.Size([3, 5, 1])

    Source: Jacot et al. (2018), arXiv 1806.07572; Lewkowycz et al. (2020), arXiv 2003.02218.

    """

    def __init__(
        self,
        sizes: Sequence[int],
        seeds: Sequence[int],
        *,
        activation: str = "relu",
        antisymmetric: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Draw each run's weights from its own seed."""
        super().__init__()
        if activation not in GAINS:
            raise ValueError(f"activation must be one of {sorted(GAINS)}, got {activation!r}")
        if len(sizes) < 3:
            raise ValueError(f"sizes must be (inputs, hidden, ..., outputs), got {tuple(sizes)}")
        if not len(seeds):
            raise ValueError("seeds must name at least one run, got none")
        if antisymmetric and sizes[-2] % 2:
            raise ValueError(f"sizes must have an even last width to be antisymmetric, got {sizes[-2]}")
        self.gain, self.activation = GAINS[activation], ACTIVATIONS[activation]()
        drawn = [_draw_wide(sizes, int(seed), antisymmetric, dtype) for seed in seeds]
        self.weights = nn.ParameterList([torch.stack(layer) for layer in zip(*drawn, strict=True)])

    @property
    def runs(self) -> int:
        """How many nets there are."""
        return len(self.weights[0])

    def layers(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What enters each weight, (R, m, fan_in), scaled as it is multiplied, and what leaves it."""
        h, enters, leaves = x.flatten(1).expand(self.runs, -1, -1), list[Tensor](), list[Tensor]()
        for index, w in enumerate(self.weights):
            last = index == len(self.weights) - 1
            enters.append(h * ((1.0 if last else self.gain) / w.shape[1] ** 0.5))
            leaves.append(torch.bmm(enters[-1], w))
            h = self.activation(leaves[-1])
        return enters, leaves

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (R, m, K) for inputs (m, ...) common to all runs."""
        return self.layers(x)[1][-1]


def _draw_wide(sizes: Sequence[int], seed: int, antisymmetric: bool, dtype: torch.dtype) -> list[Tensor]:
    """N(0, 1) weights of one net."""
    generator = torch.Generator().manual_seed(seed)
    pairs = list(itertools.pairwise(sizes))
    weights = [torch.randn(a, b, generator=generator, dtype=dtype) for a, b in pairs]
    if antisymmetric:
        half = sizes[-2] // 2
        weights[-2][:, half:] = weights[-2][:, :half]
        weights[-1][half:] = -weights[-1][:half]
    return weights


def wide_kernel(nets: WideStack, x: Tensor) -> Tensor:
    """Compute each run's tangent kernel J J^T / m over all outputs, exactly, layer by layer.

    The kernel of a linear layer is the product, entry by entry, of the Gram matrices of what enters it and of what
    comes back to it; the layers' kernels add up.

    Args:
        nets: R of them.
        x: (m, ...) inputs.

    Returns:
        (R, m K, m K), the outputs of an input next to each other.

    Example:
        >>> wide_kernel(WideStack((3, 8, 2), seeds=[0]), torch.randn(4, 3)).shape
        torch.Size([1, 8, 8])

    """
    enters, leaves = nets.layers(x)
    outputs = leaves[-1]
    runs, m, classes = outputs.shape
    returns = [torch.autograd.grad(outputs[:, :, k].sum(), leaves, retain_graph=True) for k in range(classes)]
    kernel = torch.zeros(runs, m, classes, m, classes, dtype=x.dtype)
    for layer, entering in enumerate(enters):
        gram = torch.bmm(entering, entering.transpose(1, 2)).detach()
        back = torch.stack([returned[layer] for returned in returns], dim=2).flatten(1, 2)
        product = torch.bmm(back, back.transpose(1, 2)).view(runs, m, classes, m, classes)
        kernel += gram[:, :, None, :, None] * product
    return kernel.view(runs, m * classes, m * classes) / m


def wide_curvature(nets: WideStack, x: Tensor, iterations: int = 60) -> Tensor:
    """Find the top eigenvalue of each run's tangent kernel by power iteration, (R,)."""
    return top_eigenpair(wide_kernel(nets, x), iterations)[0]


def top_eigenpair(kernel: Tensor, iterations: int = 60) -> tuple[Tensor, Tensor]:
    """Iterate positive semi-definite matrices (R, N, N) to their top eigenvalues (R,) and unit vectors (R, N).

    Relative error of the value about the squared ratio of the first two eigenvalues to the power `iterations`.

    Example:
        >>> value, vector = top_eigenpair(torch.diag(torch.tensor([3.0, 1.0, 0.5])).expand(2, 3, 3))
        >>> [round(v, 5) for v in value.tolist()]
        [3.0, 3.0]

    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(kernel.shape[-1], 1, generator=generator, dtype=kernel.dtype)
    vector = start.expand(len(kernel), -1, -1)
    for _ in range(iterations):
        vector = torch.bmm(kernel, vector)
        vector = vector / vector.norm(dim=1, keepdim=True)
    value = (vector * torch.bmm(kernel, vector)).sum(dim=(1, 2))
    return value, vector[:, :, 0]
