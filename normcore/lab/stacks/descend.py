"""Gradient descent on wide nets side by side, past the edge of what converges."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from normcore.lab.data.dataset import Dataset
from normcore.lab.stacks.stack import Stack, StackProbe, WideStack, stack_losses
from normcore.lab.training.history import History, Record

BLOCK = 256
"""Steps whose batches are drawn at once."""


def train_stack(
    stack: Stack,
    data: Dataset | tuple[Tensor, Tensor],
    *,
    lr: ArrayLike,
    weight_decay: ArrayLike = 0.0,
    steps: int,
    batch_size: int | None = None,
    seeds: Sequence[int] | None = None,
    probes: Mapping[str, StackProbe] | None = None,
    every: int = 1,
    progress: bool | None = False,
) -> History:
    """Train each run with plain SGD and coupled weight decay: w <- (1 - lr wd) w - lr g.

    Args:
        stack: trained in place.
        data: whose training part is used, or inputs and labels.
        lr: a number, (T,) over the steps, (R, 1) over the runs, or (R, T).
        weight_decay: likewise.
        steps: T.
        batch_size: drawn with replacement; None is full batch.
        seeds: of each run's batches, (R,); equal seeds see equal batches. By default 0 ... R-1.
        probes: name -> function of the stack that gives an (R, ...) tensor, read as in `train`.
        every: steps between readings.
        progress: whether to show a bar.

    Returns:
        History: loss (T, R), gradient records "grad_sq_norm" (T, R), the squared norm of each run's batch
        gradient at its own weights, and the probes' readings.

    Raises:
        ValueError: a shape does not fit, or steps, every or batch_size is below 1.
        FloatingPointError: a loss is not finite.

    Example:
        >>> from normcore.lab import load_dataset
        >>> stack = Stack((64, 16, 10), seeds=range(3))
        >>> history = train_stack(stack, load_dataset("digits"), lr=0.1, weight_decay=4e-3, steps=20, batch_size=16)
        >>> history.loss.shape
        (20, 3)

    """
    x, y = (data.x_train, data.y_train) if isinstance(data, Dataset) else data
    rates = _over_runs("lr", lr, steps, stack, batch_size, every)
    decays = _over_runs("weight_decay", weight_decay, steps, stack, batch_size, every)
    batches = _stack_batches(x.flatten(1), y, stack, steps, batch_size, seeds)
    losses, squares, taken = list[Tensor](), list[Tensor](), list[int]()
    readings: dict[str, list[NDArray[np.float64]]] = {name: [] for name in probes or {}}

    def read(t: int) -> None:
        taken.append(t)
        for name, probe in (probes or {}).items():
            readings[name].append(probe(stack).detach().double().cpu().numpy().copy())

    for t in tqdm(range(steps), disable=not progress, leave=False):
        if t % every == 0:
            read(t)
        loss, square = _step(stack, *next(batches), rates[t], decays[t])
        losses.append(loss)
        squares.append(square)
    read(steps)
    records = {name: np.stack(values) for name, values in readings.items()}
    records["grad_sq_norm"] = _record(squares)
    if not np.isfinite(_record(losses)).all():
        raise FloatingPointError("a run diverged: its loss is not finite")
    return History(_record(losses), np.array(taken), records)


def _step(stack: Stack, x: Tensor, y: Tensor, lr: Tensor, weight_decay: Tensor) -> tuple[Tensor, Tensor]:
    """One step of every run: its loss before it and the squared norm of its gradient, (R,) each."""
    weights = list(stack.weights)
    loss = stack_losses(stack(x), y)
    gradients = torch.autograd.grad(loss.sum(), weights)
    with torch.no_grad():
        for w, g in zip(weights, gradients, strict=True):
            w.mul_(1 - lr * weight_decay).sub_(lr * g)
    square = torch.stack([g.flatten(1).pow(2).sum(dim=1) for g in gradients]).sum(dim=0)
    return loss.detach(), square


def _record(rows: list[Tensor]) -> NDArray[np.float64]:
    """Rows of a record as one array."""
    record: NDArray[np.float64] = torch.stack(rows).double().cpu().numpy()
    return record


def _stack_batches(
    x: Tensor, y: Tensor, stack: Stack, steps: int, batch_size: int | None, seeds: Sequence[int] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each step's inputs and labels (R, B): everything, or a draw of each run's own."""
    own = list(range(stack.runs)) if seeds is None else [int(seed) for seed in seeds]
    if len(own) != stack.runs:
        raise ValueError(f"seeds must hold one for each of {stack.runs} runs, got {len(own)}")
    if batch_size is None:
        return iter([(x, y.expand(stack.runs, -1))] * steps)
    return ((x[index], y[index]) for index in _draws(own, steps, batch_size, len(x)))


def _over_runs(
    name: str, value: ArrayLike, steps: int, stack: Stack, batch_size: int | None, every: int
) -> Tensor:
    """A rate for each step and run as (T, R, 1, 1) in the dtype of the weights."""
    for label, number in (("steps", steps), ("every", every), ("batch_size", batch_size or 1)):
        if number < 1:
            raise ValueError(f"{label} must be >= 1, got {number!r}")
    array: NDArray[np.float64] = np.asarray(value, dtype=np.float64)
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(f"{name} must be >= 0 and finite, got {value!r}")
    try:
        table = np.broadcast_to(array, (stack.runs, steps))
    except ValueError:
        need = f"a number, ({steps},), ({stack.runs}, 1) or ({stack.runs}, {steps})"
        raise ValueError(f"{name} must be {need}, got shape {array.shape}") from None
    weight = stack.weights[0]
    return torch.tensor(table.T.copy(), dtype=weight.dtype, device=weight.device)[:, :, None, None]


def _draws(seeds: Sequence[int], steps: int, batch_size: int, count: int) -> Iterator[Tensor]:
    """Indices (R, B) for each step; a run's depend on its seed only."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for start in range(0, steps, BLOCK):
        size = (min(BLOCK, steps - start), batch_size)
        drawn = torch.stack([torch.randint(count, size, generator=g) for g in generators], dim=1)
        yield from drawn


WideLoss = Callable[[Tensor, Tensor], Tensor]
WideProbe = Callable[[WideStack], Tensor]
GIVE_UP = 1e6
"""A run whose loss exceeds the largest initial loss by this factor counts as diverged. The catapult's own peak is
about the width times the initial loss, so this is far above it."""


@dataclass(frozen=True, eq=False)
class Descent(Record):
    """What a descent recorded.

    Attributes:
        loss: (T+1, R) full-batch loss before each step and after the last; inf once a run has diverged.
        step: the steps before which the probes were read, the last one after the last step.
        records: probe name -> (readings, R, ...).
        diverged_at: (R,) step at which a run was given up, -1 where it was not.

    """

    diverged_at: NDArray[np.int64]


def half_mse(output: Tensor, y: Tensor) -> Tensor:
    """Return 1/(2m) sum over inputs and outputs of (f - y)^2 for each run: outputs (R, m, K), targets (m, K)."""
    return (output - y).pow(2).sum(dim=(1, 2)) / (2 * output.shape[1])


def softmax_loss(output: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of each run: outputs (R, m, K), targets (m, K) one-hot."""
    target = y.argmax(dim=1).expand(len(output), -1)
    each = cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none")
    return each.view(target.shape).mean(dim=1)


def descend(
    nets: WideStack,
    x: Tensor,
    y: Tensor,
    *,
    lr: ArrayLike,
    steps: int,
    loss_fn: WideLoss = half_mse,
    batch_size: int | None = None,
    seed: int = 0,
    probes: Mapping[str, WideProbe] | None = None,
    every: int = 1,
) -> Descent:
    """Run gradient descent with a learning rate for each run, without momentum or weight decay.

    A run that diverges is stopped where it is and recorded; the others go on.

    Args:
        nets: trained in place.
        x: (m, ...) inputs.
        y: (m, K) targets.
        lr: a number, or one for each run.
        steps: T, >= 1.
        loss_fn: of outputs (R, m, K) and targets (m, K), one value for each run; each run must depend on its own
            outputs only.
        batch_size: minibatches without replacement, the same for all runs; None is full batch.
        seed: of the minibatches.
        probes: name -> function of the nets that gives (R, ...), read before steps 0, every, ... and after the
            last.
        every: steps between readings.

    Returns:
        Descent.

    Raises:
        ValueError: lr has the wrong length or is not > 0, steps or every is below 1, or the batch is larger than
            the data.

    Example:
        >>> x, y = torch.randn(10, 5), torch.ones(10, 1)
        >>> nets = WideStack((5, 64, 1), seeds=[0, 0])
        >>> descend(nets, x, y, lr=[0.01, 1e4], steps=20).diverged_at.tolist()[0]
        -1

    """
    rates = _rates(lr, nets, steps, every)
    if batch_size is not None and not 1 <= batch_size <= len(x):
        raise ValueError(f"batch_size must be between 1 and {len(x)}, got {batch_size!r}")
    weights, alive = list(nets.weights), torch.ones(nets.runs, dtype=torch.bool)
    stopped = np.full(nets.runs, -1, dtype=np.int64)
    losses, taken = list[Tensor](), list[int]()
    readings: dict[str, list[NDArray[np.float64]]] = {name: [] for name in probes or {}}
    draws = _batches(len(x), batch_size, seed)

    def read(t: int) -> None:
        taken.append(t)
        for name, probe in (probes or {}).items():
            readings[name].append(probe(nets).detach().double().numpy().copy())

    for t in range(steps + 1):
        if t % every == 0 or t == steps:
            read(t)
        full = loss_fn(nets(x), y)
        limit = GIVE_UP * (losses[0] if losses else full.detach()).max()
        bad = alive & ~(full.detach() <= limit)
        stopped[bad.numpy()] = t
        alive = alive & ~bad
        losses.append(torch.where(alive, full.detach(), torch.inf))
        if t == steps:
            break
        index = None if batch_size is None else next(draws)
        loss = full if index is None else loss_fn(nets(x[index]), y[index])
        gradients = torch.autograd.grad(loss.sum(), weights)
        with torch.no_grad():
            for w, g in zip(weights, gradients, strict=True):
                moving = alive[:, None, None]
                w.sub_(torch.where(moving, rates * g, 0.0))
    records = {name: np.stack(values) for name, values in readings.items()}
    return Descent(torch.stack(losses).double().numpy(), np.array(taken), records, stopped)


def _rates(lr: ArrayLike, nets: WideStack, steps: int, every: int) -> Tensor:
    """One rate for each run, (R, 1, 1)."""
    for name, value in (("steps", steps), ("every", every)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value!r}")
    rates = np.asarray(lr, dtype=np.float64)
    if rates.shape not in ((), (nets.runs,)):
        raise ValueError(f"lr must be a number or {nets.runs} of them, got shape {rates.shape}")
    if not ((rates > 0).all() and np.isfinite(rates).all()):
        raise ValueError(f"lr must be > 0 and finite, got {lr!r}")
    table = np.broadcast_to(rates, (nets.runs,)).copy()
    return torch.tensor(table, dtype=nets.weights[0].dtype)[:, None, None]


def _batches(count: int, batch_size: int | None, seed: int) -> Iterator[Tensor]:
    """Indices of minibatches: permutations cut into pieces, the rest of each dropped."""
    generator = torch.Generator().manual_seed(seed)
    while batch_size is not None:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % batch_size].split(batch_size)
