"""One descent for many nets side by side, and their losses; a run that diverges stops, and the others go on."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from normcore.checks import (
    FloatArray,
    checked,
    checked_count,
    checked_pair,
    checked_seed,
    require_examples,
    require_flags,
    require_type,
)
from normcore.lab.data.dataset import Dataset
from normcore.lab.measure import first_nan
from normcore.lab.stacks.stack import Stack, StackProbe
from normcore.lab.training.probes import Record, require_probes

StackLoss = Callable[[Tensor, Tensor], Tensor]

GIVE_UP = 1e6
"""The largest loss of a run, in units of its first one, or of 1 where that is less. The catapult's own peak is about
the width times the first loss, so this is far above it."""

BLOCK = 128
"""Steps whose batches are drawn, and sent to the device, at once."""


@dataclass(frozen=True, eq=False)
class Descent(Record):
    """What a descent recorded; all arrays are NaN from where a run diverged.

    Attributes:
        loss: (T+1, R) loss on the batch of each step, before the step, and on one more after the last.
        step: the steps before which the probes were read, the last one after the last step.
        records: probe name -> (readings, R, ...), and "grad_sq", (T, R): |g|^2, the squared norm of each step's
            gradient. (S, the "grad_sq_norm" of `equilibrium`, is that times the squared norm of the weights.)

    """

    @property
    def diverged_at(self) -> list[int | None]:
        """For each run the step before which its loss or gradient was lost, or None."""
        return first_nan(self.loss)


def descend(
    stack: Stack,
    data: Dataset | tuple[Tensor, Tensor],
    *,
    lr: ArrayLike,
    weight_decay: ArrayLike = 0.0,
    steps: int,
    loss_fn: StackLoss | None = None,
    batch_size: int | None = None,
    replacement: bool = True,
    seeds: Sequence[int] | int | None = None,
    probes: Mapping[str, StackProbe] | None = None,
    every: int = 1,
) -> Descent:
    """Train each run by gradient descent with coupled weight decay: w <- (1 - lr wd) w - lr g.

    A run diverges when its loss or squared gradient is not finite, or its loss exceeds a million times its first one,
    or a million where that one is below 1. It then stays where it is, and the others go on.

    Args:
        stack: trained in place, on the device where it and the data are.
        data: whose training part is used, or inputs (N, ...) and labels (N,) or targets (N, outputs).
        lr: a number, one for each run (R,), or what broadcasts to runs and steps (R, T).
        weight_decay: likewise.
        steps: T.
        loss_fn: of outputs (R, B, outputs) and the batch's y, one value for each run, which must depend on that run's
            outputs alone; by default `half_mse` for floats y and `softmax_loss` for integer labels.
        batch_size: None is full batch.
        replacement: whether examples are drawn independently, or permutations cut into batches (the rest dropped).
        seeds: of each run's batches (R,), where equal seeds see equal batches, or one for all; by default 0 ... R-1.
        probes: name -> function of the stack that gives (R, ...), read before steps 0, every, ... and after the last.
        every: steps between readings.

    Raises:
        ValueError: a shape does not fit, lr or weight_decay is not >= 0, or a count is below 1.

    Example:
        >>> x, y = torch.randn(10, 5), torch.ones(10, 1)
        >>> nets = Stack((5, 64, 1), seeds=[0, 0], parametrization="ntk")
        >>> descend(nets, (x, y), lr=[0.01, 1e9], steps=20).diverged_at
        [None, 1]

    """
    require_type("stack", stack, Stack, "a Stack")
    x, y = (data.x_train, data.y_train) if isinstance(data, Dataset) else checked_pair(data, "data")
    require_examples(x, y, " of data")
    require_type("loss_fn", loss_fn, Callable | None, "a function or None")
    require_probes(probes)
    require_flags(replacement=replacement)
    checked_count("steps", steps)
    checked_count("every", every)
    rates, decays = _table("lr", lr, stack, steps), _table("weight_decay", weight_decay, stack, steps)
    batches = _batches(x, y, stack.runs, batch_size, replacement, seeds)
    loss_of, probes, weights = loss_fn or default_loss(y), probes or {}, list(stack.weights)
    taken, readings = list[int](), {name: list[FloatArray]() for name in probes}
    rows, lives, alive = list[FloatArray](), list[NDArray[np.bool_]](), np.full(stack.runs, True)
    limit = np.full((2, stack.runs), np.inf)  # of loss and squared gradient
    for t in range(steps + 1):
        if t % every == 0 or t == steps:
            taken.append(t)
            for name, probe in probes.items():
                readings[name].append(_reading(name, probe(stack), stack.runs))
        inputs, targets, own = next(batches)
        loss = loss_of(stack(inputs, own), targets)
        gradients = torch.autograd.grad(loss.sum(), weights) if t < steps else ()
        square = sum((g.flatten(1).pow(2).sum(dim=1) for g in gradients), torch.zeros_like(loss))
        row = _numbers(torch.stack([loss.detach(), square]))
        if t == 0:
            limit[0] = GIVE_UP * np.maximum(row[0], 1.0)
        alive = alive & (row < limit).all(axis=0)
        rows.append(row)
        lives.append(alive)
        if t < steps:
            _step(weights, gradients, rates[t], decays[t], alive)
    losses, squares = np.where(np.stack(lives), np.stack(rows, axis=1), np.nan)
    records = {name: np.stack(values) for name, values in readings.items()}
    for record in records.values():
        record[np.isnan(losses[taken])] = np.nan
    return Descent(losses, np.array(taken), {"grad_sq": squares[:-1]} | records)


@torch.no_grad()
def _step(
    weights: list[Tensor], gradients: Sequence[Tensor], lr: Tensor, weight_decay: Tensor, alive: NDArray[Any]
) -> None:
    kept = 1 - lr * weight_decay
    if not alive.all():  # a lost gradient times 0 would still be lost
        moves = torch.from_numpy(alive).to(lr.device)[:, None, None]
        kept = torch.where(moves, kept, 1.0)
        gradients = [torch.where(moves, g, 0.0) for g in gradients]
    for w, g in zip(weights, gradients, strict=True):
        w.mul_(kept).sub_(lr * g)


def _table(name: str, value: ArrayLike, stack: Stack, steps: int) -> Tensor:
    """A rate for each step and run, (T, R, 1, 1), in the dtype and on the device of the weights."""
    array, weight = checked(name, value, least=0), stack.weights[0]
    try:
        table = np.broadcast_to(array[:, None] if array.ndim == 1 else array, (stack.runs, steps))
    except ValueError:
        need = f"a number, ({stack.runs},) or what broadcasts to runs and steps ({stack.runs}, {steps})"
        raise ValueError(f"{name} must be {need}, got shape {array.shape}") from None
    return torch.tensor(table.T.copy(), dtype=weight.dtype, device=weight.device)[:, :, None, None]


def _batches(
    x: Tensor,
    y: Tensor,
    runs: int,
    batch_size: int | None,
    replacement: bool,
    seeds: Sequence[int] | int | None,
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Inputs and targets for step after step, and whether each run has its own."""
    if batch_size is None:
        yield from itertools.repeat((x, y, False))
        return
    if checked_count("batch_size", batch_size) > len(x) and not replacement:
        raise ValueError(f"batch_size must be <= {len(x)} without replacement, got {batch_size!r}")
    common = isinstance(seeds, int | np.integer)
    own: Any = [seeds] if common else range(runs) if seeds is None else seeds
    require_type("seeds", own, Sequence | np.ndarray, "one seed or a list of them")
    if not common and len(own) != runs:
        raise ValueError(f"seeds must hold one for each of {runs} runs, got {len(own)}")
    # on the CPU: the same for all devices
    generators = [torch.Generator().manual_seed(checked_seed(seed, "seeds")) for seed in own]
    x, fit = x.reshape(len(x), -1), len(x) // batch_size  # rows are gathered faster than images
    while True:
        if replacement:
            drawn = [torch.randint(len(x), (BLOCK, batch_size), generator=g) for g in generators]
        else:
            orders = [torch.randperm(len(x), generator=g) for g in generators]
            drawn = [order[: fit * batch_size].view(fit, batch_size) for order in orders]
        for index in torch.stack(drawn, dim=1).to(x.device):
            index = index[0] if common else index
            yield x[index], y[index], not common


def _reading(name: str, value: Tensor, runs: int) -> FloatArray:
    if value.shape[:1] != (runs,):
        raise ValueError(f"probes[{name!r}] must give (R, ...), R = {runs}, got shape {tuple(value.shape)}")
    return _numbers(value)


def _numbers(values: Tensor) -> FloatArray:
    """Values as an array: here, and nowhere else, they leave their device."""
    return values.detach().cpu().numpy().astype(np.float64)


def stack_loss_on(x: Tensor, y: Tensor, loss_fn: StackLoss | None = None) -> StackProbe:
    """Make a probe: the loss of each run on fixed inputs (N, ...), (R,); y and loss_fn as in `descend`."""
    require_examples(x, y)
    require_type("loss_fn", loss_fn, Callable | None, "a function or None")
    loss_of = loss_fn or default_loss(y)
    return lambda stack: loss_of(stack(x, own=False), y).detach()


def default_loss(y: Tensor) -> StackLoss:
    """The loss that fits the targets: `half_mse` for floats, `softmax_loss` for integer labels."""
    return half_mse if y.is_floating_point() else softmax_loss


def half_mse(output: Tensor, y: Tensor) -> Tensor:
    """Return 1/(2B) sum of (f - y)^2 for each run, (R,): outputs f (R, B, K), targets (B, K) or each run's (R, B, K).

    Raises:
        ValueError: y has another shape.

    Example:
        >>> half_mse(torch.zeros(2, 3, 1), torch.ones(3, 1))
        tensor([0.5000, 0.5000])

    """
    return (output - _targets(output, y, labels=False)).pow(2).sum(dim=(1, 2)) / (2 * output.shape[1])


def softmax_loss(output: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of each run, (R,), for outputs (R, B, K).

    Targets are integer labels (B,) or probabilities (B, K), or each run's own with an axis R before.

    Raises:
        ValueError: y has another shape.

    Example:
        >>> softmax_loss(torch.zeros(2, 3, 10), torch.tensor([1, 2, 3])).exp()
        tensor([10., 10.])

    """
    target = _targets(output, y, labels=True)
    try:
        each = cross_entropy(output.flatten(0, 1), target.flatten(0, 1), reduction="none")
    except IndexError as error:  # on a GPU it would cost a look at the labels
        raise ValueError(f"y must hold labels 0 ... {output.shape[2] - 1}, got others: {error}") from error
    return each.view(output.shape[:2]).mean(dim=1)


def _targets(output: Tensor, y: Tensor, *, labels: bool) -> Tensor:
    """What each run's outputs are compared with; where `labels` allows it integers, without the last axis."""
    require_type("output", output, Tensor, "a tensor")
    require_type("y", y, Tensor, "a tensor")
    if output.ndim != 3 or not output.numel():
        raise ValueError(f"output must have shape (R, B, K), got {tuple(output.shape)}")
    shape = output.shape[:2] if labels and not y.is_floating_point() else output.shape
    if y.shape not in (shape, shape[1:]):
        raise ValueError(f"y must have shape {tuple(shape[1:])} or {tuple(shape)}, got {tuple(y.shape)}")
    return y.expand(shape)
