"""What a run records, and the recorder that fills it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Probe = Callable[[nn.Module], Tensor | float]


@dataclass(frozen=True, eq=False)
class Record:
    """Losses and the readings of probes.

    Attributes:
        loss: (T,) loss at each step, before the step.
        step: the steps t before which the probes were read; the last reading follows the last step.
        records: probe name -> array whose first axis runs over `step`; `record["name"]` is short.

    """

    loss: NDArray[np.float64]
    step: NDArray[np.int64]
    records: Mapping[str, NDArray[np.float64]]

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """The record of a probe.

        Raises:
            KeyError: there is no probe of that name.

        """
        if name not in self.records:
            raise KeyError(f"no probe named {name!r}; the run recorded {sorted(self.records)}")
        return self.records[name]


@dataclass(frozen=True, eq=False)
class History(Record):
    """What a run recorded.

    Attributes:
        loss: (T,) batch loss at each step, before the step.
        step: the steps t before which the probes were read; the last reading follows the last step.
        records: probe name -> array whose first axis runs over `step`; `history["name"]` is short.
        diverged_at: the first step with a non-finite loss, at which the run stopped, or None.

    """

    diverged_at: int | None = None


class Recorder:
    """Keeps the losses, and reads the probes at most once for each t."""

    def __init__(self, model: nn.Module, probes: Mapping[str, Probe]) -> None:
        self.model, self.probes = model, probes
        self.losses, self.steps = list[float](), list[int]()
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

    def history(self, diverged_at: int | None) -> History:
        """Everything as arrays."""
        records = {name: np.stack(values) for name, values in self.readings.items() if values}
        return History(np.array(self.losses), np.array(self.steps), records, diverged_at)

    def state_dict(self) -> dict[str, Any]:
        """Losses, readings and the state of the probes that have one, for a checkpoint."""
        return {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "steps": list(self.steps),
            "readings": {n: torch.tensor(np.array(values)) for n, values in self.readings.items()},
            "probes": {n: p.state_dict() for n, p in self.probes.items() if hasattr(p, "state_dict")},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.losses, self.steps = state["losses"].tolist(), list(state["steps"])
        self.readings = {name: list(values.numpy()) for name, values in state["readings"].items()}
        for name, saved in state["probes"].items():
            getattr(self.probes[name], "load_state_dict")(saved)  # noqa: B009  # a Probe need not have one
