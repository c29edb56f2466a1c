"""Intrinsic and effective learning rate, on numbers or read off an optimizer.

An optimizer belongs to a family by two properties: whether its weight decay runs through the momentum buffer
(coupled) or beside it (decoupled), and how its update answers when the weights grow by c: by 1/c (SGD, the
gradient itself) or not at all (Adam's family, signs). One formula serves floats, arrays and tensors.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from normcore.checks import checked_choice, common_shape, numbers, require_momentum, require_range, said
from normcore.equivalence.gauge import RULES, UpdateRule, rule_of
from normcore.sharded import norm_over_parts

Number = Any
"""A float, a numpy array or a torch tensor; formulas take any mix that broadcasts."""


def common(**arguments: Number) -> list[Number]:
    """Bring the arguments to one kind: tensors if one of them is a tensor, else float64 arrays."""
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
    """Choose entry by entry, with numpy or torch."""
    if isinstance(condition, Tensor):
        return torch.where(condition, one, other)
    return np.where(condition, one, other)


FAMILIES = {name: RULES[name] for name in ("sgd", "nesterov", "sgdw", "adamw", "degree0")}
"""Name of the optimizer -> its rule, where there are closed forms."""


def look_up(optimizer: str) -> UpdateRule:
    """The rule of that name."""
    return FAMILIES[checked_choice("optimizer", optimizer, sorted(FAMILIES))]


class Rates(NamedTuple):
    """A group's hyper-parameters as the closed forms take them; dampening is folded into the learning rate."""

    family: str
    lr: float
    weight_decay: float
    momentum: float
    """Of the gradients' buffer for SGD, beta_1 for AdamW."""


def rates_of(optimizer: Optimizer, group: dict[str, Any]) -> Rates | None:
    """The hyper-parameters of a torch optimizer's group; None where there is no closed form, as for LBFGS."""
    family = rule_of(optimizer, group)
    if family not in ("sgd", "nesterov", "adamw"):
        return None
    lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
    if family == "adamw":
        return Rates(family, lr, weight_decay, float(group["betas"][0]))
    momentum = float(group["momentum"])
    lr *= 1.0 - float(group["dampening"]) if momentum > 0 else 1.0
    return Rates(family, lr, weight_decay, momentum)


def _every_group(optimizer: Optimizer) -> list[tuple[Rates, list[Tensor]]]:
    groups = [(rates_of(optimizer, group), group["params"]) for group in optimizer.param_groups]
    known = [(rates, params) for rates, params in groups if rates is not None]
    if len(known) < len(groups):
        wanted = "torch.optim.SGD or AdamW (decoupled weight decay), with torch's own step"
        raise TypeError(f"optimizer must be {wanted}, got {type(optimizer).__name__}")
    return known


def intrinsic_lr(lr: Any, weight_decay: Number = None, momentum: Number = 0.0) -> Any:
    """Compute the intrinsic learning rate, the one number that the equilibrium of a normalized net depends on.

    lambda_e = lr * weight_decay / (1 - momentum), per step. 1/lambda_e is the time scale, in steps, on which
    a scale-invariant net forgets its past.

    Convention: coupled decay, as in `torch.optim.SGD`, where the momentum buffer carries the decay too. With
    decoupled decay (AdamW, SGDW) the momentum does not enter: pass lr and weight_decay only.

    Args:
        lr: learning rate, >= 0 (float, array or tensor); or a torch SGD or AdamW, alone. SGD's dampening
            multiplies the rate by 1 - dampening.
        weight_decay: >= 0.
        momentum: in [0, 1).

    Returns:
        A number of the kind that came in; for an optimizer a list, one float for each group;
        that of AdamW is lr * weight_decay.

    Raises:
        ValueError: an argument breaks its condition.
        TypeError: weight_decay is missing or not a number, or the optimizer is neither SGD nor decoupled AdamW
            with torch's own step.

    Example:
        >>> round(intrinsic_lr(0.1, 5e-4, 0.9), 12)
        0.0005
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> intrinsic_lr(torch.optim.SGD([weight], lr=0.5, weight_decay=0.25, momentum=0.5))
        [0.25]

    Source: Li, Lyu & Arora (2020), arXiv 2010.02916; the factor of momentum is derived in this project.

    """
    if isinstance(lr, Optimizer):
        if weight_decay is not None:
            raise TypeError("weight_decay must not be given beside an optimizer, which has its own")
        return [_intrinsic(rates) for rates, _ in _every_group(lr)]
    lr, weight_decay, momentum = common(lr=lr, weight_decay=weight_decay, momentum=momentum)
    require_range("lr", lr)
    require_range("weight_decay", weight_decay)
    require_momentum("momentum", momentum)
    return plain(lr * weight_decay / (1.0 - momentum))


def _intrinsic(rates: Rates) -> float:
    momentum = 0.0 if look_up(rates.family).decoupled else rates.momentum
    return float(intrinsic_lr(rates.lr, rates.weight_decay, momentum))


def effective_lr(lr: Any, norm: Number = None, momentum: Number = 0.0) -> Any:
    """Compute the effective learning rate, the one that the direction of scale-invariant weights feels.

    lr / (1 - momentum) / norm^2. The gradient of a scale-invariant loss falls as 1/|w| and a step turns w by
    its size over |w|: hence the square. An optimizer of degree 0 (AdamW) takes steps of a size that does not
    depend on |w|; there it is lr / norm.

    Args:
        lr: learning rate, >= 0 (float, array or tensor); or a torch SGD or AdamW, alone.
        norm: |w| > 0, of all the weights under one normalized function, concatenated.
        momentum: in [0, 1).

    Returns:
        A number of the kind that came in; for an optimizer a list, one float for each group, with the norm of
        the group's weights as they stand (`NormMonitor` follows them, and knows of ExpLR): inf for a group of
        zeros, which one step turns right round. Of sharded weights all processes must ask.

    Raises:
        ValueError: an argument breaks its condition.
        TypeError: norm is missing or not a number, or the optimizer is neither SGD nor decoupled AdamW with
            torch's own step.

    Example:
        >>> effective_lr(0.5, 2.0), effective_lr(0.5, 2.0, 0.5)
        (0.125, 0.25)
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> effective_lr(torch.optim.SGD([weight], lr=0.5))
        [0.02]

    Source: van Laarhoven (2017), arXiv 1706.05350.

    """
    if isinstance(lr, Optimizer):
        if norm is not None:
            raise TypeError("norm must not be given beside an optimizer, whose weights are measured")
        return [_effective(rates, params) for rates, params in _every_group(lr)]
    lr, norm, momentum = common(lr=lr, norm=norm, momentum=momentum)
    require_range("lr", lr)
    require_range("norm", norm, positive=True)
    require_momentum("momentum", momentum)
    return plain(lr / (1.0 - momentum) / norm**2)


def _effective(rates: Rates, params: list[Tensor]) -> float:
    norm = norm_over_parts(params) if params else 0.0
    if norm == 0:
        return math.inf if rates.lr > 0 else 0.0
    if look_up(rates.family).power == 4:
        return float(effective_lr(rates.lr, norm, rates.momentum))
    return float(norm * effective_lr(rates.lr, norm))
