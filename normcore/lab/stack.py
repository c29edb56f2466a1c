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

from normcore.lab.layers import ACTIVATIONS, SMALLEST_EPS

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
