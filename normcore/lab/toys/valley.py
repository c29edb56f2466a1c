"""The smallest scale-invariant valley: L(x, y) = x^2 / (x^2 + y^2), under gradient descent with weight decay."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normcore.checks import FloatArray, checked, checked_count, checked_number, numbers, require

RANGE = 1e-150, 1e150
"""Where the square of x^2 + y^2 is a number."""


@dataclass(frozen=True, eq=False)
class ValleyRun:
    """Descent in the valley, before each step and after the last: arrays (T+1,), NaN from where it diverged.

    Attributes:
        x: across the valley.
        y: along its floor, x = 0, where the loss is 0.
        lr: learning rate.
        diverged_at: the step before which x^2 + y^2 was out of `RANGE`, or None.

    """

    x: FloatArray
    y: FloatArray
    lr: float
    diverged_at: int | None = None

    @property
    def norm(self) -> FloatArray:
        """The distance r from the origin."""
        return np.hypot(self.x, self.y)

    @property
    def loss(self) -> FloatArray:
        """x^2/r^2."""
        return np.asarray((self.x / self.norm) ** 2)

    @property
    def stability(self) -> FloatArray:
        """The rate times the curvature across the valley, 2 lr (y^2 - x^2)/r^4; above 2 the loss grows."""
        return np.asarray(2 * self.lr * (self.y**2 - self.x**2) / self.norm**4)


def valley(
    lr: float, weight_decay: float, *, steps: int, start: tuple[float, float] = (0.1, 1.0)
) -> ValleyRun:
    """Run gradient descent with weight decay on x^2/(x^2 + y^2).

    Convention: coupled decay, w <- (1 - lr*weight_decay) w - lr grad L(w).

    Args:
        lr: > 0.
        weight_decay: >= 0 with lr*weight_decay < 1.
        steps: >= 1.
        start: (x, y), with x^2 + y^2 in `RANGE`.

    Raises:
        ValueError: an argument breaks its condition.

    Example:
        >>> run = valley(0.1, 0.0, steps=1000)  # without decay the loss only falls
        >>> bool((np.diff(run.loss) <= 0).all())
        True

    Source: the toy of Li, Lyu & Arora (2020), arXiv 2010.02916, as their talks show it.

    """
    lr, weight_decay = (
        checked_number("lr", lr, above=0),
        checked_number("weight_decay", weight_decay, least=0),
    )
    checked_count("steps", steps)
    require("weight_decay", weight_decay, "such that lr*weight_decay < 1", lr * weight_decay < 1)
    point = checked("start", start)
    if point.shape != (2,):
        raise ValueError(f"start must be two numbers (x, y), got shape {point.shape}")
    x, y = point.tolist()
    if not RANGE[0] < x * x + y * y < RANGE[1]:
        raise ValueError(f"start must have x^2 + y^2 in {RANGE}, got {start!r}")
    keep, path = 1 - lr * weight_decay, [(x, y)]
    for _ in range(steps):
        pull = 2 * lr * x * y / (x * x + y * y) ** 2
        x, y = keep * x - pull * y, keep * y + pull * x
        if not RANGE[0] < x * x + y * y < RANGE[1]:
            break
        path.append((x, y))
    xs, ys = np.full((2, steps + 1), np.nan)
    xs[: len(path)], ys[: len(path)] = np.array(path).T
    return ValleyRun(xs, ys, lr, len(path) if len(path) <= steps else None)


def spikes(loss: FloatArray, rise: float = 2.0) -> NDArray[np.int64]:
    """Find the steps, ascending, at which a positive loss (T,) has risen above `rise` times its last trough.

    A spike is counted once: the next can begin when the loss has fallen below half of its peak.

    Raises:
        ValueError: rise is not above 1.

    Example:
        >>> spikes(np.array([1.0, 0.1, 0.3, 0.9, 0.2, 0.1, 0.5]))
        array([2, 6])

    """
    rise, loss = checked_number("rise", rise, above=1), numbers("loss", loss)
    if loss.ndim != 1:
        raise ValueError(f"loss must have shape (T,), got {loss.shape}")
    found, trough, peak = list[int](), np.inf, None
    for t, value in enumerate(loss.tolist()):
        if peak is not None:
            peak = max(peak, value)
            if value < peak / 2:
                peak, trough = None, value
            continue
        trough = min(trough, value)
        if value > rise * trough:
            found.append(t)
            peak = value
    return np.array(found, dtype=np.int64)
