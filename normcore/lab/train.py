"""One training loop for all experiments, and what it records."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from tqdm import tqdm

from normcore.follow import follow
from normcore.wd_free_run import EquivalentSchedule

Batches = Sequence[tuple[Tensor, Tensor]]
Probe = Callable[[nn.Module], Tensor | float]


@dataclass(frozen=True, eq=False)
class History:
    """What a run recorded.

    Attributes:
        loss: (T,) batch loss at each step, before the step.
        step: the steps t before which the probes were read; the last reading follows the last step.
        records: probe name -> array whose first axis runs over `step`; `history["name"]` is short.
        diverged_at: the first step with a non-finite loss, at which the run stopped, or None.

    """

    loss: NDArray[np.float64]
    step: NDArray[np.int64]
    records: Mapping[str, NDArray[np.float64]]
    diverged_at: int | None = None

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """The record of a probe.

        Raises:
            KeyError: there is no probe of that name.

        """
        if name not in self.records:
            raise KeyError(f"no probe named {name!r}; the run recorded {sorted(self.records)}")
        return self.records[name]


class _Recorder:
    """Reads the probes, at most once for each t."""

    def __init__(self, model: nn.Module, probes: Mapping[str, Probe]) -> None:
        """Start with no readings."""
        self.model, self.probes, self.steps = model, probes, list[int]()
        self.readings: dict[str, list[NDArray[np.float64]]] = {name: [] for name in probes}

    def read(self, t: int) -> None:
        """Read every probe, unless that was done for this t."""
        if t in self.steps[-1:]:
            return
        self.steps.append(t)
        for name, probe in self.probes.items():
            value = probe(self.model)
            array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value
            self.readings[name].append(np.array(array, dtype=np.float64))

    def history(self, losses: list[float], diverged_at: int | None) -> History:
        """Everything as arrays."""
        records = {name: np.stack(values) for name, values in self.readings.items()}
        return History(np.array(losses), np.array(self.steps), records, diverged_at)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    schedule: EquivalentSchedule | None = None,
    before_step: Callable[[int], None] | None = None,
    scheduler: Any = None,
    probes: Mapping[str, Probe] | None = None,
    every: int = 1,
    progress: bool | None = None,
) -> History:
    """Train on the given batches, one step each, and record probes.

    Args:
        model: trained in place, in the mode it is in.
        optimizer: any torch optimizer over its parameters.
        batches: (x, y) for step 0, 1, ...
        loss_fn: of (model(x), y).
        schedule: an `EquivalentSchedule` that the optimizer follows, step by step.
        before_step: called with t after the backward pass and before the optimizer's step.
        scheduler: a torch scheduler, stepped after each step.
        probes: name -> function of the model, read before steps 0, every, ... and after the last.
        every: steps between readings, >= 1.
        progress: whether to show a bar; by default on a terminal, for runs longer than 2 seconds.

    Returns:
        History. A non-finite loss ends the run and is recorded as `diverged_at`.

    Raises:
        ValueError: every is below 1, or the schedule is shorter than the batches.

    Example:
        >>> import torch
        >>> from normcore.lab import load_dataset, mlp, trainable, weight_norm
        >>> net = mlp((64, 16, 10))
        >>> batches = load_dataset("digits").batches(30, 32)
        >>> optimizer = torch.optim.SGD(trainable(net), lr=0.1)
        >>> history = train(net, optimizer, batches, probes={"norm": weight_norm})
        >>> len(history.loss), len(history["norm"]), bool((np.diff(history["norm"]) > 0).all())
        (30, 31, True)

    """
    _check(len(batches), every, schedule)
    recorder, losses, diverged_at = _Recorder(model, probes or {}), list[float](), None
    for t, (x, y) in enumerate(_bar(batches, progress)):
        if t % every == 0:
            recorder.read(t)
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            diverged_at = t
            break
        loss.backward()
        if schedule is not None:
            follow(optimizer, schedule, t)
        if before_step is not None:
            before_step(t)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    recorder.read(len(batches) if diverged_at is None else diverged_at)
    return recorder.history(losses, diverged_at)


def _check(steps: int, every: int, schedule: EquivalentSchedule | None) -> None:
    """Refuse what would fail half-way."""
    if every < 1:
        raise ValueError(f"every must be >= 1, got {every!r}")
    if schedule is not None and schedule.steps < steps:
        need = f"at least {steps} steps, one for each batch"
        raise ValueError(f"schedule must have {need}, got {schedule.steps}")


def _bar(batches: Batches, progress: bool | None) -> Iterable[tuple[Tensor, Tensor]]:
    """The batches behind a progress bar that stays silent in notebooks and short runs."""
    shown = sys.stderr.isatty() if progress is None else progress
    bar: Iterable[tuple[Tensor, Tensor]] = tqdm(
        batches, disable=not shown, leave=False, delay=2.0 if progress is None else 0.0
    )
    return bar
