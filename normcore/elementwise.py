"""One formula for floats, arrays and tensors: what differs between numpy and torch, and the checks of both."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

Number = Any
"""A float, a numpy array or a torch tensor; formulas take any mix that broadcasts."""


def common(**arguments: Number) -> list[Number]:
    """Bring the arguments to one kind: tensors if one of them is a tensor, else float64 arrays."""
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    if not tensors:
        return [_array(name, value) for name, value in arguments.items()]
    dtype = torch.result_type(tensors[0], 1.0)
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, torch.result_type(tensor, 1.0))
    return [
        value.to(dtype)
        if isinstance(value, Tensor)
        else torch.as_tensor(_array(name, value), dtype=dtype, device=tensors[0].device)
        for name, value in arguments.items()
    ]


def _array(name: str, value: Number) -> Number:
    """The value as a float64 array."""
    try:
        if value is not None:  # numpy would take it for nan
            return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be a number, an array or a tensor, got {value!r}")


def plain(value: Number) -> Number:
    """A Python float where the value is a numpy scalar; arrays and tensors as they are."""
    return value if isinstance(value, Tensor) or np.ndim(value) else float(value)


def apply(function: str, value: Number) -> Number:
    """Apply the function of that name, numpy's or torch's."""
    return getattr(torch if isinstance(value, Tensor) else np, function)(value)


def where(condition: Number, one: Number, other: Number) -> Number:
    """Choose elementwise."""
    if isinstance(condition, Tensor):
        return torch.where(condition, one, other)
    return np.where(condition, one, other)


def require(name: str, value: Number, condition: str, holds: Number) -> None:
    """Raise ValueError naming the argument, its first value that breaks the condition, and the condition."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    if isinstance(holds, Tensor):
        holds = holds.detach().cpu()
    holds = np.asarray(holds, dtype=bool)
    if not holds.all():
        worst = np.broadcast_to(np.asarray(value, dtype=np.float64), holds.shape)[~holds].flat[0]
        raise ValueError(f"{name} must be {condition}, got {float(worst)!r}")


def require_range(name: str, value: Number, *, positive: bool = False) -> None:
    """Raise ValueError unless the value is finite and >= 0, or > 0."""
    sign = ">" if positive else ">="
    least = value > 0 if positive else value >= 0
    require(name, value, f"{sign} 0 and finite", least & apply("isfinite", value))


def require_momentum(name: str, value: Number) -> None:
    """Raise ValueError unless the value lies in [0, 1)."""
    require(name, value, "in [0, 1)", (value >= 0) & (value < 1))
