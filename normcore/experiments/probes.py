"""Probes for long runs: with a state that a checkpoint keeps, and with memory that stays small."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normcore.lab.training.probes import SWA, Angle, accuracy_on, direction
from normcore.norm_dynamics.monitor import NormMonitor

CHUNK = 1000
"""Test images whose statistics a norm sees at once."""


def in_chunks(
    make_probe: Callable[[Tensor, Tensor], Callable[[nn.Module], float]], x: Tensor, y: Tensor
) -> Callable[[nn.Module], float]:
    """Make a probe that averages another over parts of 1,000 examples, so that memory stays small."""
    parts = list(zip(x.split(CHUNK), y.split(CHUNK), strict=True))
    probes = [(make_probe(*part), len(part[1]) / len(y)) for part in parts]
    return lambda model: sum(probe(model) * share for probe, share in probes)


class FirstStepAngle:
    """The angle of the first step of each epoch: told of every step, read as a probe once an epoch.

    A reading is that of the epoch that ends, and nan at the start.
    """

    def __init__(self, epoch: int) -> None:
        """Start without a reading; `epoch` is its length in steps, >= 2."""
        self.epoch, self.angle, self.last = epoch, Angle(), math.nan

    def before_step(self, t: int, model: nn.Module) -> None:
        """Take note of the weights before the first and the second step of an epoch."""
        if t % self.epoch == 0:
            self.angle = Angle()
        if t % self.epoch <= 1:
            self.last = self.angle(model)

    def __call__(self, model: nn.Module) -> float:
        """Read the model, as a probe."""
        return self.last

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"last": self.last, "angle": self.angle.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.last = state["last"]
        self.angle.load_state_dict(state["angle"])


class MonitorReading:
    """A probe that reads group 0 of a NormMonitor: rho, angle and S; nan before the first step."""

    NAMES = ("rho", "angle", "grad_sq_norm")

    def __init__(self, monitor: NormMonitor) -> None:
        self.monitor = monitor

    def __call__(self, model: nn.Module) -> Tensor:
        """Read the model, as a probe."""
        if not self.monitor.steps:
            return torch.full((len(self.NAMES),), torch.nan)
        log = self.monitor.log()
        return torch.tensor([log[f"group0/{name}"] for name in self.NAMES])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return self.monitor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.monitor.load_state_dict(state)


class Chord:
    """A probe: the distance of the weights' direction from where it was at a reading; nan before, 0 there."""

    def __init__(self, reading: int) -> None:
        """Measure from that reading, counted from 0."""
        self.reading, self.count = reading, 0
        self.start: Tensor | None = None

    def __call__(self, model: nn.Module) -> float:
        """Read the model, as a probe."""
        if self.count == self.reading:
            self.start = direction(model)
        self.count += 1
        return math.nan if self.start is None else float((direction(model) - self.start).norm())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"count": self.count, "start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.count, self.start = state["count"], state["start"]


class LateSWA(SWA):
    """The average of the weights from a reading on, and its test accuracy; nan before."""

    def __init__(self, reading: int, x: Tensor, y: Tensor) -> None:
        """Average from that reading on, counted from 0."""
        super().__init__(x, y)
        self.reading, self.count, self.accuracy = reading, 0, in_chunks(accuracy_on, x, y)

    def __call__(self, model: nn.Module) -> float:
        """Take the weights in, once it is time."""
        self.count += 1
        return super().__call__(model) if self.count > self.reading else math.nan

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"count": self.count, "average": super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.count = state["count"]
        super().load_state_dict(state["average"])
