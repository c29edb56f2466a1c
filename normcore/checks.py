"""The one vocabulary of errors: each names the argument, the condition and what was given.

A wrong type, None included, is a TypeError, a bad value a ValueError. Numbers are real: words, truth values and
complex numbers are no numbers, and a tensor that requires a gradient does not lose it silently.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]


def require(name: str, value: Any, condition: str, holds: Any, *, at: str = "") -> None:
    """Raise ValueError with the first number that breaks the condition, and its place in units of `at`."""
    holds = np.asarray(holds.cpu() if isinstance(holds, Tensor) else holds)
    if holds.all():
        return
    value = np.asarray(value.detach().cpu().double() if isinstance(value, Tensor) else value)
    first = int(np.argmin(holds))
    worst, place = float(np.broadcast_to(value, holds.shape).flat[first]), f" at {at} {first}" if at else ""
    raise ValueError(f"{name} must be {condition}, got {worst!r}{place}")


def require_range(name: str, value: Any, *, positive: bool = False, at: str = "") -> None:
    """Raise ValueError unless every number is finite and >= 0, or > 0."""
    finite = torch.isfinite if isinstance(value, Tensor) else np.isfinite
    condition, least = ("> 0", value > 0) if positive else (">= 0", value >= 0)
    require(name, value, f"finite and {condition}", least & finite(value), at=at)


def require_momentum(name: str, value: Any, *, at: str = "") -> None:
    """Raise ValueError unless every number lies in [0, 1)."""
    require(name, value, "in [0, 1)", (value >= 0) & (value < 1), at=at)


def said(value: Any) -> str:
    """What was given, as an error says it: in full where that is short."""
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"


def numbers(name: str, value: Any) -> FloatArray:
    """The value as a float64 array of any shape.

    Raises:
        TypeError: it is not made of real numbers that can be read here.

    """
    try:
        array = np.asarray(value)
        exotic = array.dtype.kind == "O" and all(_is_real(entry) for entry in array.flat)  # a Fraction, say
        if exotic or array.dtype.kind in "iuf":
            return np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"{name} must be a number or an array of numbers, got {said(value)}")


def _is_real(entry: Any) -> bool:
    return hasattr(type(entry), "__float__") and not isinstance(entry, bool | np.bool_)


def checked(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
) -> FloatArray:
    """The value as a finite float64 array, every entry > above, >= least and < below."""
    array = numbers(name, value)
    holds, condition = np.isfinite(array), ["finite"]
    for limit, sign, within in (
        (above, ">", np.greater),
        (least, ">=", np.greater_equal),
        (below, "<", np.less),
    ):
        if limit is not None:
            holds, condition = holds & within(array, limit), [*condition, f"{sign} {limit:g}"]
    require(name, array, " and ".join(condition), holds)
    return array


def checked_number(name: str, value: Any, **limits: float) -> float:
    """The value as one finite number within the limits of `checked`."""
    array = checked(name, value, **limits)
    if array.ndim:
        raise ValueError(f"{name} must be one number, got shape {array.shape}")
    return float(array)


def checked_count(name: str, value: Any, *, least: int = 1) -> int:
    """The value as an integer >= least."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {said(value)}")
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value!r}")
    return int(value)


def checked_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """The value, if it is one of these words."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {choices}, got {said(value)}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
    return value


def common_shape(**arguments: Any) -> tuple[int, ...]:
    """The shape that arrays or tensors broadcast to."""
    shapes = {name: tuple(value.shape) for name, value in arguments.items()}
    try:
        return np.broadcast_shapes(*shapes.values())
    except ValueError:
        raise ValueError(f"{', '.join(shapes)} must broadcast, got shapes {shapes}") from None


def require_type(name: str, value: Any, kind: Any, what: str) -> None:
    """Raise TypeError unless the value is of a kind that is called so in words."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {what}, got {type(value).__name__}")


def columns(steps: int | None, **arguments: Any) -> list[FloatArray]:
    """The arguments (a number, or one a step) as columns of one length, in the ranges that their names have."""
    columns = {name: numbers(name, value) for name, value in arguments.items()}
    for name, column in columns.items():
        if column.ndim > 1:
            raise ValueError(f"{name} must be a number or a one-dimensional array, got shape {column.shape}")
    lengths = {name: column.size for name, column in columns.items() if column.ndim}
    if steps is not None:
        lengths["steps"] = checked_count("steps", steps)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"lengths must agree, got {lengths}")
    if not lengths:
        raise ValueError(f"steps must be given when {', '.join(columns)} are all scalars, got steps=None")
    total = next(iter(lengths.values()))
    if not total:
        raise ValueError(f"{next(iter(lengths))} must hold a number for at least one step, got none")
    broadcast = {name: np.broadcast_to(column, (total,)) for name, column in columns.items()}
    at = "step" if total > 1 or any(column.ndim for column in columns.values()) else ""
    for name, column in broadcast.items():
        if name in ("momentum", "dampening"):
            require_momentum(name, column, at=at)
        elif name == "lr":
            require_range(name, column, at=at)
        else:
            require(name, column, "finite", np.isfinite(column), at=at)
    if {"lr", "weight_decay"} <= broadcast.keys():
        decay, product = broadcast["weight_decay"], broadcast["lr"] * broadcast["weight_decay"]
        require("weight_decay", decay, "such that 1 - lr*weight_decay > 0", product < 1, at=at)
    return list(broadcast.values())
