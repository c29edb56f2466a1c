"""Plain SGD with weight decay on a stack of nets, a schedule and a stream of batches for each."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from tqdm import tqdm

from normcore.lab.data import Dataset
from normcore.lab.history import History
from normcore.lab.stack import Stack, StackProbe, stack_losses

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
    batches = _batches(x.flatten(1), y, stack, steps, batch_size, seeds)
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


def _batches(
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
