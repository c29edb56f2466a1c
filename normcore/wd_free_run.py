"""The run without weight decay, as a frozen value: its rates, its scale, and the maps between the two runs' states."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from normcore.schedules import FloatArray


@dataclass(frozen=True, eq=False)
class EquivalentSchedule:
    """The run without weight decay that equals a run with it.

    Start a stock optimizer from theta~_0 = theta_0 and the same momentum buffer, set `weight_decay=0`, and
    before step t (i) multiply the buffer by `gain_after[t-1]` (from step 1 on), (ii) add `corrections[t]` *
    theta~_t to it if there is such an entry, (iii) multiply it by `gain_before[t]`, (iv) set the learning
    rate and momentum of step t. For SGD with coupled decay and without Nesterov every gain is 1, so that only
    the learning rate and the corrections are left; `normcore.follow` does all four.

    Attributes:
        log_lr: (T,) logarithm of the learning rate; -inf where the original rate is 0.
        log_scale: (T+1,) log x_t.
        buffer_ratio: (T+1,) kappa_t = p_t / x_t, after the correction of step t.
        momentum: (T,) momentum of the run without weight decay.
        gain_before: (T,) factor on the momentum buffer before step t.
        gain_after: (T,) factor on it after step t. A buffer of degree r in the gradients (AdamW's second
            moment: r = 2) takes the factor to the power r.
        corrections: step -> coefficient of theta~_t to add to the buffer before that step.

    """

    log_lr: FloatArray
    log_scale: FloatArray
    buffer_ratio: FloatArray
    momentum: FloatArray
    gain_before: FloatArray
    gain_after: FloatArray
    corrections: Mapping[int, float]

    def __repr__(self) -> str:
        """A line: the range of the rate, not its values."""
        return (
            f"EquivalentSchedule(steps={self.steps}, log10_lr={self.log_lr[0] / math.log(10):.4g}.."
            f"{self.log_lr[-1] / math.log(10):.4g}, corrections={len(self.corrections)})"
        )

    @property
    def steps(self) -> int:
        """The number of steps T."""
        return len(self.log_lr)

    @property
    def lr(self) -> FloatArray:
        """The learning rates, shape (T,).

        Raises OverflowError where one exceeds the float range: use `log_lr` there.
        """
        too_large = np.flatnonzero(self.log_lr > math.log(np.finfo(np.float64).max))
        if too_large.size:
            raise OverflowError(
                f"lr exceeds the float64 range from step {too_large[0]} on; use log_lr, or ExpLR, which rebases"
            )
        return np.exp(self.log_lr)

    @property
    def buffer_shift(self) -> FloatArray:
        """p_t, shape (T+1,):

        Buf~_t = x_t buf_t - p_t theta_t (0 where x_t underflows; `buffer_ratio` never does).
        """
        return self.buffer_ratio * np.exp(self.log_scale)

    def to_wd_free(self, theta: Any, buf: Any, t: int) -> tuple[Any, Any]:
        """Map the state (theta_t, buf_t) of the run with weight decay to the state of the run without it.

        Args:
            theta: weights before step t, array or tensor of any shape.
            buf: momentum buffer of the same shape, or None when there is none yet (taken as 0).
            t: the step the state is ready for, 0 <= t <= T; the correction of step t is included.

        Returns:
            (theta~_t, buf~_t) = (theta / x_t, x_t buf - p_t theta).

        """
        x, ratio = self._gauge(t)
        return theta / x, x * ((0.0 if buf is None else buf) - ratio * theta)

    def from_wd_free(self, theta: Any, buf: Any, t: int) -> tuple[Any, Any]:
        """The inverse of `to_wd_free`: (theta_t, buf_t) = (x_t theta~, (buf~ + p_t theta_t) / x_t)."""
        x, ratio = self._gauge(t)
        original = x * theta
        return original, (0.0 if buf is None else buf) / x + ratio * original

    def _gauge(self, t: int) -> tuple[float, float]:
        """(x_t, kappa_t) as floats."""
        if not 0 <= t <= self.steps:
            raise ValueError(f"t must be between 0 and {self.steps}, got {t!r}")
        x = math.exp(self.log_scale[t])
        if x == 0.0:
            raise OverflowError(
                f"x_t underflows at t={t} (log x_t = {self.log_scale[t]:.4g}); use log_scale, or ExpLR, which rebases"
            )
        return x, float(self.buffer_ratio[t])
