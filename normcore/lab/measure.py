"""Rulers: how far two records lie apart, and with which power one quantity follows another."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normcore.checks import checked, numbers


def gaps(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Measure the norm of the difference of two records (readings, ...) at each reading: (readings,) float64.

    Raises:
        ValueError: the shapes differ, as when one of the runs diverged.

    """
    return _gaps(a=a, b=b)


def _gaps(**records: ArrayLike) -> NDArray[np.float64]:
    """The norm of the difference of two records, by their names."""
    x, y = (numbers(name, record) for name, record in records.items())
    if x.shape != y.shape or not (x.ndim and x.size):
        raise ValueError(
            f"{' and '.join(records)} must be records of one shape, not empty, got {x.shape} and {y.shape}"
        )
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
    sizes = gaps(a, np.zeros_like(numbers("a", a)))
    if (sizes == 0).any():
        raise ValueError(f"a must not be zero, got 0 at reading {int((sizes == 0).argmax())}")
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
    """Fit log y = a + k log x by least squares to at least three points: (k, standard error of k).

    Raises:
        ValueError: lengths differ, fewer than three points, or a value that is not > 0.

    Example:
        >>> round(slope([1, 2, 4, 8], [3, 12, 48, 192])[0], 12)
        2.0

    """
    xs, ys = numbers("x", x), numbers("y", y)
    if xs.shape != ys.shape or xs.ndim != 1:
        raise ValueError(f"x and y must be of one length, got shapes {xs.shape} and {ys.shape}")
    if len(xs) < 3 or not (np.isfinite(xs * ys).all() and min(xs.min(), ys.min()) > 0):
        values = f"got {xs.tolist()} and {ys.tolist()}"
        raise ValueError(f"x and y must hold at least three finite values > 0, {values}")
    if xs.min() == xs.max():
        raise ValueError(f"x must hold values that differ, got {xs.tolist()}")
    across, up = (np.log(v) - np.log(v).mean() for v in (xs, ys))
    square = across @ across
    power = across @ up / square
    missed = up - power * across
    return float(power), float(np.sqrt(missed @ missed / (len(across) - 2) / square))


def roundings(a: ArrayLike, b: ArrayLike, twin: ArrayLike) -> float:
    """Measure the distance of two runs that theory calls equal in units of what one rounding becomes.

    Convention: the largest distance of `a` and `b` over that of `a` and its twin, the same run started one rounding
    error away (`rounding_twin`), all of one shape (readings, ...). Training amplifies both alike, so that a few units
    mean equality.

    Raises:
        ValueError: as in `gaps`, or the twin does not differ from `a`.

    Example:
        >>> roundings([1.0, 2.0], [1.0, 2.5], [1.0, 2.25])
        2.0

    """
    unit = float(_gaps(a=a, twin=twin).max())
    if not unit > 0:
        raise ValueError(f"twin must differ from a by a rounding, got a distance of {unit}")
    return max_gap(a, b) / unit
