"""How long the toy stays near its solution, measured and bounded."""

import math

import numpy as np
from numpy.typing import NDArray

from normcore.lab.toy import ToyRun


def escape_steps(run: ToyRun, epsilon: float) -> NDArray[np.float64]:
    """Find the first step at which the error exceeds epsilon/pi, for each run.

    Args:
        run: from `toy`, started at the solution.
        epsilon: the half angle of the cone around it, radians.

    Returns:
        (runs,), infinity where the run ended before.

    Example:
        >>> run = ToyRun(np.array([[0.0], [0.2], [0.5]]), np.ones((3, 1)))
        >>> escape_steps(run, epsilon=0.3 * math.pi).tolist()
        [2.0]

    """
    above = run.error > epsilon / math.pi
    return np.where(above.any(axis=0), above.argmax(axis=0), np.inf).astype(np.float64)


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

    ln(64 norm^2 epsilon sqrt(B) / (lr sqrt(m-2))) / (2 (lr*weight_decay - 2 epsilon^2))
    + 9 ln(1/delta), with probability 1 - delta. Inside the cone the squared norm shrinks by
    exp(-2 (lr*weight_decay - 2 epsilon^2)) a step, until one noisy gradient turns w out of it.

    Convention: coupled decay, no momentum; counts from a step at which |w| = norm.

    Args:
        lr: learning rate, > 0.
        weight_decay: > 0.
        epsilon: half angle of the cone, radians, > 0.
        norm: |w| at the first step, > 0.
        dim: m, > 2.
        batch_size: B.
        delta: probability that the bound fails, in (0, 1].

    Returns:
        A number of steps.

    Raises:
        ValueError: an argument breaks its condition, or lr*weight_decay <= 2 epsilon^2, where the
            norm need not shrink.

    Example:
        >>> round(theorem_3_1_bound(0.1, 0.02, 0.01, norm=1.0))
        539

    Source: the form of Li & Arora (2020), arXiv 1910.07454, Theorem 3.1. The first term is derived
        in the chapter; the constants 64 and 9 are not, and are only held against simulations.

    """
    positive = {
        "lr": lr,
        "epsilon": epsilon,
        "norm": norm,
        "dim - 2": dim - 2,
        "batch_size": batch_size,
    }
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be > 0 and finite, got {value!r}")
    if not 0 < delta <= 1:
        raise ValueError(f"delta must be in (0, 1], got {delta!r}")
    rate = lr * weight_decay - 2 * epsilon**2
    if not rate > 0:
        product = f"epsilon={epsilon!r} at lr*weight_decay={lr * weight_decay:g}"
        raise ValueError(f"epsilon must satisfy lr*weight_decay > 2 epsilon^2, got {product}")
    travel = math.log(64 * norm**2 * epsilon * math.sqrt(batch_size) / (lr * math.sqrt(dim - 2)))
    return max(travel, 0.0) / (2 * rate) + 9 * math.log(1 / delta)
