"""Rulers: how far two records lie apart, and with which power one quantity follows another."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import linregress

from normcore.checks import checked


def gaps(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Measure the norm of the difference of two records at each reading.

    Args:
        a: (readings, ...).
        b: the same shape.

    Returns:
        (readings,) float64.

    Raises:
        ValueError: the shapes differ, as when one of the runs diverged.

    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim == 0:
        raise ValueError(f"a and b must be records of one shape, got {x.shape} and {y.shape}")
    return np.asarray(np.linalg.norm((x - y).reshape(len(x), -1), axis=1))


def first_nan(record: ArrayLike) -> list[int | None]:
    """Find for each run the first reading of a record (readings, runs) that is NaN, or None.

    Example:
        >>> first_nan([[1.0, 1.0], [2.0, float("nan")]])
        [None, 1]

    """
    lost = np.isnan(np.asarray(record, dtype=np.float64))
    return [int(run.argmax()) if run.any() else None for run in lost.T]


def max_gap(a: ArrayLike, b: ArrayLike) -> float:
    """Return max over t of |a_t - b_t|, nan where a reading is.

    Example:
        >>> max_gap([[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [4.0, 5.0]])
        5.0

    Raises:
        ValueError: as in `gaps`.

    """
    return float(gaps(a, b).max())


def relative_gap(a: ArrayLike, b: ArrayLike) -> float:
    """Return max over t of |a_t - b_t| / |a_t|.

    Example:
        >>> relative_gap([[3.0, 4.0], [0.0, 1.0]], [[3.0, 4.5], [0.0, 1.0]])
        0.1

    Raises:
        ValueError: as in `gaps`, or a reading of `a` is zero.

    """
    sizes = gaps(a, np.zeros_like(np.asarray(a, dtype=np.float64)))
    if (sizes == 0).any():
        raise ValueError(f"a must not be zero, but is at reading {int((sizes == 0).argmax())}")
    return float((gaps(a, b) / sizes).max())


def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """Return the mean of independent values, of any shape, and its standard error.

    Raises:
        ValueError: there are fewer than two, or one is not finite.
        TypeError: they are no numbers.

    Example:
        >>> mean_and_error([1.0, 3.0])
        (2.0, 1.0)

    """
    array = checked("values", values)
    if array.size < 2:
        raise ValueError(f"values must be at least two, got {array.size}")
    return float(np.mean(array)), float(np.std(array, ddof=1) / np.sqrt(array.size))


def slope(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Fit log y = a + k log x by least squares.

    Args:
        x: at least three positive values, not all equal.
        y: as many positive values.

    Returns:
        (k, standard error of k).

    Raises:
        ValueError: lengths differ, fewer than three points, or a value that is not > 0.

    Example:
        >>> round(slope([1, 2, 4, 8], [3, 12, 48, 192])[0], 12)
        2.0

    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if xs.shape != ys.shape or xs.ndim != 1:
        raise ValueError(f"x and y must be of one length, got shapes {xs.shape} and {ys.shape}")
    if len(xs) < 3 or not (np.isfinite(xs * ys).all() and min(xs.min(), ys.min()) > 0):
        values = f"got {xs.tolist()} and {ys.tolist()}"
        raise ValueError(f"x and y must hold at least three finite values > 0, {values}")
    fit = linregress(np.log(xs), np.log(ys))
    return float(fit.slope), float(fit.stderr)


def roundings(a: ArrayLike, b: ArrayLike, twin: ArrayLike) -> float:
    """Measure the distance of two runs that theory calls equal in units of what one rounding becomes.

    Convention: the largest distance of `a` and `b` over that of `a` and its twin, the same run started one rounding
    error away (`rounding_twin`). Training amplifies both alike, so that a few units mean equality.

    Args:
        a: (readings, ...).
        b: the same shape.
        twin: the same shape.

    Returns:
        The ratio.

    Raises:
        ValueError: as in `gaps`, or the twin does not differ from `a`.

    Example:
        >>> roundings([1.0, 2.0], [1.0, 2.5], [1.0, 2.25])
        2.0

    """
    unit = max_gap(a, twin)
    if not unit > 0:
        raise ValueError(f"twin must differ from a by a rounding, got a distance of {unit}")
    return max_gap(a, b) / unit
