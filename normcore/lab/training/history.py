"""What a run records, and the recorder that fills it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normcore.checks import require_type
from normcore.lab.training.processes import mean_over_ranks

Probe = Callable[[nn.Module], Tensor | float]

MOST_WAITING = 1000
"""Losses that stay on a GPU at most: whoever reads one waits for the device."""


@dataclass(frozen=True, eq=False)
class Record:
    """Losses, and the readings of probes at some steps: `record["name"]` is that of a probe. See `History`."""

    loss: NDArray[np.float64]
    step: NDArray[np.int64]
    records: Mapping[str, NDArray[np.float64]]

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """The record of a probe; KeyError where there is none of that name."""
        if name not in self.records:
            raise KeyError(f"no probe named {name!r}; the run recorded {sorted(self.records)}")
        return self.records[name]


@dataclass(frozen=True, eq=False)
class History(Record):
    """What a run recorded, and where it diverged.

    Attributes:
        loss: (T,) batch loss at each step, before the step.
        step: the steps t before which the probes were read; the last reading follows the last step.
        records: probe name -> array whose first axis runs over `step`; `history["name"]` is short.
        diverged_at: the first step whose loss is not finite, or None; losses and readings are nan from there.

    """

    diverged_at: int | None = None


def require_probes(probes: Any) -> None:
    """Raise TypeError unless these are functions by name, or None."""
    require_type("probes", probes, Mapping | None, "a dict of functions or None")
    for name, probe in (probes or {}).items():
        require_type(f"probes[{name!r}]", probe, Callable, "a function")


class Recorder:
    """Keeps the losses, on the device until somebody needs them, and reads the probes at most once for each t."""

    def __init__(self, model: nn.Module, probes: Mapping[str, Probe]) -> None:
        self.model, self.probes = model, probes
        self.losses, self.steps, self.waiting = list[float](), list[int](), list[Tensor]()
        self.readings: dict[str, list[NDArray[np.float64]]] = {name: [] for name in probes}
        self.diverged_at: int | None = None

    def note(self, loss: Tensor) -> bool:
        """Take the loss of the next step; whether the run is known to have diverged, at once on a processor."""
        if loss.device.type == "cpu":
            return self._keep([float(mean_over_ranks(loss.detach()))])
        self.waiting.append(loss.detach().clone())  # a CUDA graph may write the next one to the same place
        return len(self.waiting) >= MOST_WAITING and self.diverged()

    def diverged(self) -> bool:
        """Look at the losses that are still on the device; whether one of all was not finite."""
        waiting, self.waiting = self.waiting, []
        return self._keep(mean_over_ranks(torch.stack(waiting)).flatten().tolist() if waiting else [])

    def _keep(self, losses: list[float]) -> bool:
        bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        if bad and self.diverged_at is None:
            self.diverged_at = len(self.losses) + bad[0]
        self.losses += losses
        return self.diverged_at is not None

    def read(self, t: int) -> None:
        """Read every probe, unless that was done for this t."""
        if t in self.steps[-1:]:
            return
        self.steps.append(t)
        for name, probe in self.probes.items():
            value = probe(self.model)
            array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value
            self.readings[name].append(np.array(array, dtype=np.float64))

    def history(self, steps: int, every: int) -> History:
        """Everything as arrays, nan from the step of divergence on."""
        end = math.inf if self.diverged_at is None else self.diverged_at
        step = np.array([*range(0, steps, every), steps])
        loss = np.where(np.arange(steps) < end, _filled(self.losses, steps), np.nan)
        records = {name: _filled(values, len(step)) for name, values in self.readings.items() if values}
        for values in records.values():
            values[step >= end] = np.nan
        return History(loss, step, records, self.diverged_at)

    def state_dict(self) -> dict[str, Any]:
        """Losses, readings and the state of the probes that have one, for a checkpoint."""
        return {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "diverged_at": self.diverged_at,
            "steps": list(self.steps),
            "readings": {n: torch.tensor(np.array(values)) for n, values in self.readings.items()},
            "probes": {n: p.state_dict() for n, p in self.probes.items() if hasattr(p, "state_dict")},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.losses, self.steps = state["losses"].tolist(), list(state["steps"])
        self.diverged_at = state["diverged_at"]
        self.readings = {name: list(values.numpy()) for name, values in state["readings"].items()}
        for name, saved in state["probes"].items():
            getattr(self.probes[name], "load_state_dict")(saved)  # noqa: B009  # a Probe need not have one


def _filled(values: list[Any], length: int) -> NDArray[np.float64]:
    """The first values as an array of that length, with nan behind them."""
    known = np.array(values[:length], dtype=np.float64)
    return np.concatenate([known, np.full((length - len(known), *known.shape[1:]), np.nan)])
