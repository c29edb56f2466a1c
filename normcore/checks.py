"""The one vocabulary of errors: each names the argument, the condition and what was given.

A wrong type, None included, is a TypeError, a bad value a ValueError. Numbers are real: words, truth values and
complex numbers are no numbers, and a tensor that requires a gradient does not lose it silently.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FloatArray = NDArray[np.float64]


class NonFiniteError(ValueError):
    """A loss, an output or a product is NaN or infinite: that of a run that diverged, say."""


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
    """The value as a float64 array of any shape; a TypeError where it is not made of real numbers."""
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


def real_tensor(name: str, value: Any) -> Tensor:
    """The value as a tensor of real numbers: one that is a tensor stays where it is, the others must be finite."""
    kept = isinstance(value, Tensor) and not value.is_complex()
    return value if kept else torch.as_tensor(checked(name, value))


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


def checked_counts(name: str, values: Any, *, least: int = 1) -> tuple[int, ...]:
    """The values as integers >= least."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of integers, got {said(values)}")
    return tuple(checked_count(name, value, least=least) for value in values)


def checked_seed(value: Any, name: str = "seed") -> int:
    """The value as a seed that torch takes: a 64-bit integer."""
    seed = checked_count(name, value, least=-(2**63))
    if seed >= 2**63:
        raise ValueError(f"{name} must be < 2**63, got {value!r}")
    return seed


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


def require_module(model: Any) -> None:
    """Raise TypeError unless this is a model in Python: TorchScript loses hooks and, silently, forward derivatives."""
    require_type("model", model, nn.Module, "a torch.nn.Module")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TypeError("model must be in Python, got TorchScript: give the module that it was made of")


def require_flags(**flags: Any) -> None:
    """Raise TypeError unless each value is True or False: words and numbers are not taken for one."""
    for name, flag in flags.items():
        require_type(name, flag, bool | np.bool_, "True or False")


def require_device(device: Any) -> None:
    """Raise TypeError or ValueError unless torch has this device here."""
    require_type("device", device, str | torch.device, "a torch device")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be one that torch has here, got {device!r}") from error


def checked_pair(batch: Any, name: str = "batch") -> tuple[Any, Any]:
    """The x and y of a batch."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TypeError(f"{name} must be a pair (x, y), got {type(batch).__name__}")
    return batch[0], batch[1]


def require_examples(x: Any, y: Any, of: str = "") -> None:
    """Raise TypeError or ValueError unless these are tensors with as many examples."""
    require_type(f"x{of}", x, Tensor, "a tensor")
    require_type(f"y{of}", y, Tensor, "a tensor")
    if not (x.ndim and y.ndim and len(x) == len(y) > 0):
        raise ValueError(f"x and y{of} must be as many examples, got shapes {(*x.shape,)} and {(*y.shape,)}")


def checked_loss(loss: Any, *, finite: bool = True) -> Tensor:
    """What a user's loss_fn gave, if it is one finite number that depends on the model."""
    require_type("loss_fn's value", loss, Tensor, "a tensor")
    if loss.numel() != 1:
        raise ValueError(f"loss_fn must return one number, got shape {tuple(loss.shape)}")
    if finite and not bool(loss.isfinite()):
        raise NonFiniteError(f"loss_fn must be finite on the batch, got {float(loss.detach())!r}")
    if not loss.requires_grad:
        raise ValueError("loss_fn must depend on the model's output, got a loss without a gradient")
    value: Tensor = loss.reshape(())
    return value


@contextmanager
def understood(state: Any, what: str) -> Iterator[None]:
    """Within this context a saved state is read: whatever fails there is its fault, and a ValueError that says so."""
    require_type("state", state, Mapping, what)
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"state must be {what}, got one that cannot be read: {error!r}") from error


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
