"""Gradient descent on wide nets side by side, past the edge of what converges."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from normcore.lab.history import Record
from normcore.lab.wide import WideStack

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
