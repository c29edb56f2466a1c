"""Learning-rate and weight-decay schedules as frozen values.

A schedule is a function of the step t = 0, 1, 2, ... and nothing else: calling it never changes it. Each one
also answers `log(t)`, because a rate that grows exponentially leaves the range of a float long before
training ends.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from normcore.checks import FloatArray as FloatArray
from normcore.checks import checked_count, checked_counts, checked_number


def _step(t: float) -> float:
    """The step, an integer or a time between two, if it is >= 0."""
    return t if type(t) is int and t >= 0 else checked_number("t", t, least=0.0)


LARGEST = 709.0
"""The logarithm of the largest float, rounded down."""


class Schedule:
    """A value for each step t >= 0. Subclasses define `log(t)` or `__call__(t)`; the rest follows."""

    def __call__(self, t: int) -> float:
        """The value at step t (the step that moves theta_t to theta_{t+1})."""
        try:
            return math.exp(self.log(t))
        except OverflowError:
            raise ValueError(
                f"t must keep the value in the float range, got {t!r}: use log or log_values"
            ) from None

    def log(self, t: int) -> float:
        """The natural logarithm of the value at step t; -inf where the value is 0."""
        value = self(t)
        return math.log(value) if value > 0 else -math.inf

    def values(self, steps: int) -> FloatArray:
        """The values at steps 0, ..., steps-1, shape (steps,)."""
        return np.array([self(t) for t in range(checked_count("steps", steps, least=0))])

    def log_values(self, steps: int) -> FloatArray:
        """Their logarithms, shape (steps,)."""
        return np.array([self.log(t) for t in range(checked_count("steps", steps, least=0))])


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every step.

    Args:
        lr: the value, >= 0 (1/step for a rate).

    Raises:
        ValueError: lr is negative or not finite.
        TypeError: lr is not a number.

    Example:
        >>> Constant(0.1).values(3).tolist()
        [0.1, 0.1, 0.1]

    """

    lr: float

    def __post_init__(self) -> None:
        checked_number("lr", self.lr, least=0.0)

    def __call__(self, t: int) -> float:
        """Give the rate of step t."""
        _step(t)
        return self.lr


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Start at `lr` and multiply by `factor` at each milestone: lr * factor^(number of milestones <= t).

    Args:
        lr: the value of the first phase, >= 0.
        milestones: increasing steps >= 1 at which a new phase starts (steps, not epochs).
        factor: what the value is multiplied by, > 0.

    Raises:
        ValueError: a field breaks its condition.
        TypeError: a field is not a number, a step not an integer.

    Example:
        >>> StepDecay(1.0, milestones=(2,), factor=0.1).values(4).tolist()
        [1.0, 1.0, 0.1, 0.1]

    """

    lr: float
    milestones: tuple[int, ...]
    factor: float = 0.1

    def __post_init__(self) -> None:
        checked_number("lr", self.lr, least=0.0)
        checked_number("factor", self.factor, above=0.0)
        object.__setattr__(self, "milestones", checked_counts("milestones", self.milestones))
        edges = (0, *self.milestones)
        if any(a >= b for a, b in itertools.pairwise(edges)):
            raise ValueError(f"milestones must increase from above 0, got {self.milestones!r}")
        if math.log(self.factor) * len(self.milestones) + math.log(self.lr or 1.0) > LARGEST:
            raise ValueError(f"factor must keep every value in the float range, got {self.factor!r}")

    def __call__(self, t: int) -> float:
        """The value of the phase that holds step t."""
        at = _step(t)
        return self.lr * self.factor ** sum(at >= m for m in self.milestones)

    def phases(self, steps: int) -> list[tuple[float, int]]:
        """The phases of a run of `steps` steps as (value, length) pairs, as `texp` takes them.

        Example:
            >>> StepDecay(1.0, milestones=(2,), factor=0.5).phases(5)
            [(1.0, 2), (0.5, 3)]

        """
        checked_count("steps", steps)
        edges = [0, *[m for m in self.milestones if m < steps], steps]
        return [(self(a), b - a) for a, b in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from `lr` towards 0: lr * (1 + cos(pi t / steps)) / 2; stays at 0 from t = steps on.

    Args:
        lr: the value at t = 0, >= 0.
        steps: the length of the half period, >= 1.

    Raises:
        ValueError: a field breaks its condition.
        TypeError: a field is not a number, a step not an integer.

    Example:
        >>> Cosine(1.0, steps=2).values(3).round(12).tolist()
        [1.0, 0.5, 0.0]

    """

    lr: float
    steps: int

    def __post_init__(self) -> None:
        checked_number("lr", self.lr, least=0.0)
        checked_count("steps", self.steps)

    def __call__(self, t: int) -> float:
        """Give the rate of step t."""
        return self.lr * (1 + math.cos(math.pi * min(_step(t), self.steps) / self.steps)) / 2


@dataclass(frozen=True)
class Exponential(Schedule):
    """A geometric sequence lr * growth^t. Use `log` where the value itself would overflow.

    Args:
        lr: the value at t = 0, > 0.
        growth: the factor a step, > 0 (above 1 for the schedules of Li & Arora 2020).

    Raises:
        ValueError: a field breaks its condition.
        TypeError: a field is not a number, a step not an integer.

    Example:
        >>> round(Exponential(0.1, growth=1.001).log(1_000_000))
        997

    """

    lr: float
    growth: float

    def __post_init__(self) -> None:
        checked_number("lr", self.lr, above=0.0)
        checked_number("growth", self.growth, above=0.0)

    def log(self, t: int) -> float:
        """The logarithm, exact for any t."""
        value = math.log(self.lr) + _step(t) * math.log(self.growth)
        if value == math.inf:
            raise ValueError(f"t must keep the logarithm in the float range, got {t!r}")
        return value
