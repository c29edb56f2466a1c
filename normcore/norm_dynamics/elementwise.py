"""One formula for floats, arrays and tensors: what differs between numpy and torch."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from normcore.checks import common_shape, numbers, said

Number = Any
"""A float, a numpy array or a torch tensor; formulas take any mix that broadcasts."""


def common(**arguments: Number) -> list[Number]:
    """Bring the arguments to one kind: tensors if one of them is a tensor, else float64 arrays.

    Raises:
        TypeError: an argument is not made of real numbers.
        ValueError: their shapes do not broadcast.

    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(f"{name} must be a number or an array of numbers, got {said(tensor)}")
    values: dict[str, Any] = {n: tensors[n] if n in tensors else numbers(n, v) for n, v in arguments.items()}
    common_shape(**values)
    if not tensors:
        return list(values.values())
    first, *others = tensors.values()
    dtype = torch.result_type(first, 1.0)
    for tensor in others:
        dtype = torch.promote_types(dtype, torch.result_type(tensor, 1.0))
    return [
        value.to(dtype) if name in tensors else torch.as_tensor(value, dtype=dtype, device=first.device)
        for name, value in values.items()
    ]


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
