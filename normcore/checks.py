"""Checks of arrays and counts that a user passes: each error names the argument, its value and the condition."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normcore.schedules import FloatArray


def columns(steps: int | None, **arguments: ArrayLike) -> list[FloatArray]:
    """The arguments as validated float64 columns of one length."""
    columns = {name: _numeric(name, value) for name, value in arguments.items()}
    lengths = {name: column.size for name, column in columns.items() if column.ndim}
    if steps is not None:
        lengths["steps"] = steps
    if len(set(lengths.values())) > 1:
        raise ValueError(f"lengths must agree, got {lengths}")
    if not lengths:
        raise ValueError(f"steps must be given when {', '.join(columns)} are all scalars, got steps=None")
    total = next(iter(lengths.values()))
    if isinstance(total, bool) or not isinstance(total, int | np.integer) or total < 1:
        raise ValueError(f"steps must be an integer >= 1, got {total!r}")
    broadcast = {name: np.broadcast_to(column, (total,)) for name, column in columns.items()}
    for name, column in broadcast.items():
        _check_range(name, column)
    if "lr" in broadcast and "weight_decay" in broadcast:
        require(
            broadcast["lr"] * broadcast["weight_decay"] < 1,
            "weight_decay",
            broadcast["weight_decay"],
            "such that 1 - lr*weight_decay > 0",
        )
    return list(broadcast.values())


def _numeric(name: str, value: ArrayLike) -> FloatArray:
    """The value as a float64 array of at most one dimension."""
    try:
        column = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number or a sequence of numbers, got {value!r}") from error
    if column.ndim > 1:
        raise ValueError(f"{name} must be a number or a one-dimensional array, got shape {column.shape}")
    return column


def _check_range(name: str, column: FloatArray) -> None:
    """Raise ValueError at the first step that leaves the range of the named argument."""
    if name in ("momentum", "dampening"):
        require((column >= 0) & (column < 1), name, column, "in [0, 1)")
    elif name == "lr":
        require((column >= 0) & np.isfinite(column), name, column, "finite and >= 0")
    else:
        require(np.isfinite(column), name, column, "finite")


def require(holds: NDArray[np.bool_], name: str, column: FloatArray, condition: str) -> None:
    """Raise ValueError naming argument, value, step and condition at the first step that breaks it."""
    if not np.all(holds):
        t = int(np.argmin(holds))
        raise ValueError(f"{name} must be {condition}, got {float(column[t])!r} at step {t}")


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
