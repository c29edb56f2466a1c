"""Checks of arrays and counts that a user passes: each error names the argument, its value and the condition."""

import numpy as np
from numpy.typing import ArrayLike

from normcore.schedules import FloatArray


def checked(
    name: str, value: ArrayLike, *, above: float | None = None, least: float | None = None
) -> FloatArray:
    """The value as a finite float64 array, every entry > above or >= least."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number or an array of numbers, got {value!r}") from error
    holds, condition = np.isfinite(array), "finite"
    if above is not None:
        holds, condition = holds & (array > above), f"finite and > {above:g}"
    if least is not None:
        holds, condition = holds & (array >= least), f"finite and >= {least:g}"
    if not np.all(holds):
        raise ValueError(f"{name} must be {condition}, got {float(array.ravel()[np.argmin(holds)])!r}")
    return array


def checked_count(name: str, value: int, *, least: int = 1) -> int:
    """The value as an integer >= least."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value!r}")
    return int(value)
