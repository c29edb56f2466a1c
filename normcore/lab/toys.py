"""Two toys: a last layer that normalization and weight decay keep from converging, and the smallest scale-invariant valley.

`toy`: features x ~ N(0, I_m), label y = sign(x_1), logistic loss, SGD with a constant rate and a fresh batch of B
examples at each step. The error of w is its angle to the first axis over pi. Normalization alone converges, weight
decay alone converges, both together do not.

The law is symmetric around the first axis, so a run is followed through two numbers, w_1 and the length of the rest,
w_r. Every score depends on x through x_1 and x_r, its coordinate along the rest; given those, the gradient
sum_b c_b x_b has in the other m-2 directions a normal vector of length |c| chi_{m-2}. This is exact in law, and a
step costs O(B) rather than O(B m).

`valley`: L(x, y) = x^2 / (x^2 + y^2) under gradient descent with weight decay.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normcore.checks import (
    FloatArray,
    checked,
    checked_choice,
    checked_count,
    checked_number,
    numbers,
    require,
    require_type,
)
from normcore.lab.measure import first_nan


@dataclass(frozen=True, eq=False)
class ToyRun:
    """What `toy` returns, before step 0, 1, ..., steps.

    Attributes:
        error: the angle between w and the first axis, over pi, (steps+1, runs).
        norm: |w|, (steps+1, runs). Both are NaN from where a run left the floats.

    """

    error: FloatArray
    norm: FloatArray

    @property
    def diverged_at(self) -> list[int | None]:
        """The step at which each run left the floats, or None."""
        return first_nan(self.norm)


def toy(
    lr: float,
    weight_decay: float,
    *,
    norm: str,
    steps: int,
    dim: int = 100,
    batch_size: int = 100,
    runs: int = 8,
    start_norm: ArrayLike | None = None,
    seed: int = 0,
) -> ToyRun:
    """Run SGD on the toy, many independent runs at once.

    Convention: coupled decay, w <- (1 - lr*weight_decay) w - lr * gradient; no momentum.

    Args:
        lr: learning rate, > 0.
        weight_decay: >= 0.
        norm: "none" (score x'w), "sphere" (x'w/|w|, batch normalization over the population) or "batch" (x'w
            standardised over the batch, no affine part, eps = 0).
        steps: number of steps.
        dim: m, >= 3.
        batch_size: B, >= 3.
        runs: independent runs, each with its own batches.
        start_norm: start at this multiple of the first axis, the solution, one for all runs or one for each; by
            default at a random unit vector.
        seed: of everything random.

    Raises:
        ValueError: an argument breaks its condition.

    Example:
        >>> run = toy(0.1, 0.02, norm="sphere", steps=300, runs=2, start_norm=[1.0, 10.0])
        >>> run.error.shape, run.norm[0].tolist(), bool(run.error[0].max() == 0.0)
        ((301, 2), [1.0, 10.0], True)

    Source: Li & Arora (2020), arXiv 1910.07454, Section 3.

    """
    checked_choice("norm", norm, ["batch", "none", "sphere"])
    lr = checked_number("lr", lr, above=0)
    weight_decay = checked_number("weight_decay", weight_decay, least=0)
    require("weight_decay", weight_decay, "such that lr*weight_decay < 1", lr * weight_decay < 1)
    checked_count("steps", steps)
    checked_count("runs", runs)
    checked_count("dim", dim, least=3)
    checked_count("batch_size", batch_size, least=3)
    rng = np.random.default_rng(checked_count("seed", seed, least=0))
    w = _start(rng, dim, runs, start_norm)
    norms, errors = np.empty((steps + 1, runs)), np.empty((steps + 1, runs))
    with np.errstate(over="ignore", invalid="ignore"):  # a run that leaves the floats goes alone
        for t in range(steps + 1):
            w[:, ~np.isfinite(np.hypot(*w))] = np.nan
            norms[t], errors[t] = np.hypot(*w), np.arctan2(w[1], w[0]) / np.pi
            if t == steps:
                break
            x = rng.standard_normal((2, runs, batch_size))
            gradient, side = toy_gradient(w, x, norm=norm)
            side *= np.sqrt(rng.chisquare(dim - 2, runs))
            w = (1 - lr * weight_decay) * w - lr * gradient
            w[1] = np.hypot(w[1], lr * side)
    return ToyRun(errors, norms)


def toy_gradient(w: FloatArray, x: FloatArray, *, norm: str) -> tuple[FloatArray, FloatArray]:
    """Differentiate the batch loss in w = (w_1, the length of the rest), (2, runs), on x along these, (2, runs, B).

    Gives the gradient along the two directions, (2, runs), and |c|, (runs,): the standard deviation of each of its
    other coordinates.
    """
    score, size = w[0][:, None] * x[0] + w[1][:, None] * x[1], np.hypot(*w)[:, None]
    if norm == "batch":
        c = _batch_scores(score, np.sign(x[0]))
    else:
        size = size if norm == "sphere" else np.ones_like(size)
        c = _logistic(score / size, np.sign(x[0])) / size
    gradient = np.einsum("rb,irb->ir", c, x)
    if norm == "sphere":  # |w| depends on w too: no gradient along w
        unit = w / np.hypot(*w)
        gradient -= unit * (unit * gradient).sum(axis=0)
    return gradient, np.linalg.norm(c, axis=1)


def _logistic(z: FloatArray, label: FloatArray) -> FloatArray:
    """The derivative of mean_b ln(1 + exp(-y_b z_b)) in z."""
    from scipy.special import expit  # half of what the whole laboratory takes to import

    return np.asarray(-label * expit(-label * z) / z.shape[1])


def _batch_scores(score: FloatArray, label: FloatArray) -> FloatArray:
    """The derivative of the loss in the scores that are standardised over their batch."""
    centred = score - score.mean(axis=1, keepdims=True)
    sd = np.sqrt((centred**2).mean(axis=1, keepdims=True))
    z = centred / sd
    s = _logistic(z, label)
    return np.asarray((s - s.mean(axis=1, keepdims=True) - z * (s * z).mean(axis=1, keepdims=True)) / sd)


def _start(rng: np.random.Generator, dim: int, runs: int, start_norm: ArrayLike | None) -> FloatArray:
    if start_norm is None:
        w = np.stack([rng.standard_normal(runs), np.sqrt(rng.chisquare(dim - 1, runs))])
        return np.asarray(w / np.hypot(*w))
    size = checked("start_norm", start_norm, above=0)
    if size.shape not in ((), (runs,)):
        raise ValueError(f"start_norm must be one number or {runs} of them, got shape {size.shape}")
    return np.stack([np.broadcast_to(size, runs), np.zeros(runs)])


def escape_steps(run: ToyRun, epsilon: float) -> FloatArray:
    """Find the first step at which the error of each run, started at the solution, exceeds epsilon/pi: (runs,).

    Infinity where the run ended before, NaN where it diverged before. Epsilon is half the angle of the cone, radians.

    Example:
        >>> run = ToyRun(np.array([[0.0], [0.2], [0.5]]), np.ones((3, 1)))
        >>> escape_steps(run, epsilon=0.3 * math.pi).tolist()
        [2.0]

    """
    require_type("run", run, ToyRun, "a ToyRun")
    above = run.error > checked_number("epsilon", epsilon, above=0) / math.pi
    never = np.where(np.isnan(run.error[-1]), np.nan, np.inf)
    return np.where(above.any(axis=0), above.argmax(axis=0), never)


def theorem_3_1_bound(
    lr: float,
    weight_decay: float,
    epsilon: float,
    norm: float,
    *,
    dim: int = 100,
    batch_size: int = 100,
    delta: float = 0.1,
) -> float:
    """Bound the steps until normalization with weight decay leaves the cone of error epsilon/pi.

    ln(64 norm^2 epsilon sqrt(B) / (lr sqrt(m-2))) / (2 (lr*weight_decay - 2 epsilon^2)) + 9 ln(1/delta), with
    probability 1 - delta. Inside the cone the squared norm shrinks by exp(-2 (lr*weight_decay - 2 epsilon^2)) a step,
    until one noisy gradient turns w out of it.

    Convention: coupled decay, no momentum; counts from a step at which |w| = norm.

    Args:
        lr: learning rate, > 0.
        weight_decay: > 0.
        epsilon: half angle of the cone, radians, > 0.
        norm: |w| at the first step, > 0.
        dim: m, > 2.
        batch_size: B.
        delta: probability that the bound fails, in (0, 1].

    Raises:
        ValueError: an argument breaks its condition, or lr*weight_decay <= 2 epsilon^2, where the norm need not
            shrink.

    Example:
        >>> round(theorem_3_1_bound(0.1, 0.02, 0.01, norm=1.0))
        539

    Source: the form of Li & Arora (2020), arXiv 1910.07454, Theorem 3.1. The first term is derived in the chapter;
        the constants 64 and 9 are not, and are only held against simulations.

    """
    given = {"lr": lr, "weight_decay": weight_decay, "epsilon": epsilon, "norm": norm}
    for name, value in given.items():
        checked_number(name, value, above=0)
    checked_number("batch_size", batch_size, above=0)
    checked_number("dim", dim, above=2)
    if checked_number("delta", delta, above=0) > 1:
        raise ValueError(f"delta must be in (0, 1], got {delta!r}")
    rate = lr * weight_decay - 2 * epsilon**2
    if not rate > 0:
        product = f"epsilon={epsilon!r} at lr*weight_decay={lr * weight_decay:g}"
        raise ValueError(f"epsilon must satisfy lr*weight_decay > 2 epsilon^2, got {product}")
    travel = math.log(64 * norm**2 * epsilon * math.sqrt(batch_size) / (lr * math.sqrt(dim - 2)))
    return max(travel, 0.0) / (2 * rate) + 9 * math.log(1 / delta)


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
    lr = checked_number("lr", lr, above=0)
    weight_decay = checked_number("weight_decay", weight_decay, least=0)
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
