"""Weight decay as an exponential learning rate, for any schedule, in numbers; `follow` sets them on an optimizer.

On a scale-invariant loss, SGD with learning rates lr_t, weight decays wd_t and momenta is, in function space,
the same run as one without weight decay at the rates this module computes. The theorems of Li & Arora (2020)
are its special cases: `exponential_lr` (2.1, 2.9), `texp` (2.12) and `texp_plus_plus` (2.13). Step t moves
theta_t to theta_{t+1}; throughout theta_t = x_t theta~_t, and the tilde marks the run without weight decay.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor
from torch.optim import Optimizer

from normcore.checks import (
    checked_choice,
    checked_count,
    columns,
    numbers,
    require,
    require_flags,
    require_type,
)
from normcore.equivalence.gauge import (
    RULES,
    UpdateRule,
    advance_by,
    check_supported,
    growth_factor,
    unwrapped,
)
from normcore.equivalence.group_gauge import scale_buffers, shift_buffer
from normcore.schedules import LARGEST, FloatArray


@dataclass(frozen=True, eq=False)
class EquivalentSchedule:
    """The run without weight decay that equals a run with it.

    Start a stock optimizer from theta~_0 = theta_0 and the same momentum buffer, set `weight_decay=0`, and
    before step t (i) multiply the buffer by `gain_after[t-1]` (from step 1 on), (ii) add `corrections[t]` *
    theta~_t to it if there is such an entry, (iii) multiply it by `gain_before[t]`, (iv) set the learning
    rate and momentum of step t. For SGD with coupled decay and without Nesterov every gain is 1, so that only
    the learning rate and the corrections are left; `normcore.follow` does all four.

    Attributes:
        log_lr: (T,) logarithm of the learning rate; -inf where the original rate is 0.
        log_scale: (T+1,) log x_t.
        buffer_ratio: (T+1,) kappa_t = p_t / x_t, after the correction of step t.
        momentum: (T,) momentum of the run without weight decay.
        gain_before: (T,) factor on the momentum buffer before step t.
        gain_after: (T,) factor on it after step t. A buffer of degree r in the gradients (AdamW's second
            moment: r = 2) takes the factor to the power r.
        corrections: step -> coefficient of theta~_t to add to the buffer before that step.

    """

    log_lr: FloatArray
    log_scale: FloatArray
    buffer_ratio: FloatArray
    momentum: FloatArray
    gain_before: FloatArray
    gain_after: FloatArray
    corrections: Mapping[int, float]

    def __repr__(self) -> str:
        """A line: the range of the rate, not its values."""
        return (
            f"EquivalentSchedule(steps={self.steps}, log10_lr={self.log_lr[0] / math.log(10):.4g}.."
            f"{self.log_lr[-1] / math.log(10):.4g}, corrections={len(self.corrections)})"
        )

    @property
    def steps(self) -> int:
        """The number of steps T."""
        return len(self.log_lr)

    @property
    def lr(self) -> FloatArray:
        """The learning rates, shape (T,).

        Raises OverflowError where one exceeds the float range: use `log_lr` there.
        """
        too_large = np.flatnonzero(self.log_lr > math.log(np.finfo(np.float64).max))
        if too_large.size:
            raise OverflowError(
                f"lr exceeds the float64 range from step {too_large[0]} on; use log_lr, or ExpLR, which rebases"
            )
        return np.exp(self.log_lr)

    @property
    def buffer_shift(self) -> FloatArray:
        """p_t, shape (T+1,), in buf~_t = x_t buf_t - p_t theta_t (0 where x_t underflows; `buffer_ratio` never does)."""
        return self.buffer_ratio * np.exp(self.log_scale)

    def to_wd_free(self, theta: Any, buf: Any, t: int) -> tuple[Any, Any]:
        """Map the state (theta_t, buf_t) of the run with weight decay to the state of the run without it.

        Args:
            theta: weights before step t, array or tensor of any shape.
            buf: momentum buffer of the same shape, or None when there is none yet (taken as 0).
            t: the step the state is ready for, 0 <= t <= T; the correction of step t is included.

        Returns:
            (theta~_t, buf~_t) = (theta / x_t, x_t buf - p_t theta).

        """
        theta, buf, x, ratio = self._state(theta, buf, t)
        return theta / x, x * (buf - ratio * theta)

    def from_wd_free(self, theta: Any, buf: Any, t: int) -> tuple[Any, Any]:
        """The inverse of `to_wd_free`: (theta_t, buf_t) = (x_t theta~, (buf~ + p_t theta_t) / x_t)."""
        theta, buf, x, ratio = self._state(theta, buf, t)
        original = x * theta
        return original, buf / x + ratio * original

    def _state(self, theta: Any, buf: Any, t: int) -> tuple[Any, Any, float, float]:
        """Weights and buffer as tensors or arrays, x_t and kappa_t."""
        theta = theta if isinstance(theta, Tensor) else numbers("theta", theta)
        buf = 0.0 * theta if buf is None else buf if isinstance(buf, Tensor) else numbers("buf", buf)
        if buf.shape != theta.shape:
            raise ValueError(f"buf must have the shape of theta, got {(*buf.shape,)} for {(*theta.shape,)}")
        if checked_count("t", t, least=0) > self.steps:
            raise ValueError(f"t must be between 0 and {self.steps}, got {t!r}")
        x = math.exp(self.log_scale[t])
        if x == 0.0:
            raise OverflowError(
                f"x_t underflows at t={t} (log x_t = {self.log_scale[t]:.4g}); use log_scale, or ExpLR, which rebases"
            )
        return theta, buf, x, float(self.buffer_ratio[t])


def equivalent_schedule(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    momentum: ArrayLike = 0.0,
    *,
    start: Literal["zero", "stationary"] = "zero",
    nesterov: bool = False,
    dampening: ArrayLike = 0.0,
    decoupled: bool = False,
    degree: int = 1,
    steps: int | None = None,
) -> EquivalentSchedule:
    """Compute the schedule without weight decay that equals any schedule with it, on a scale-invariant loss.

    With x_0 = 1 and p_0 = 0 the optimizer runs on a scalar whose gradient is zero,

        p_{t+1} = momentum_t p_t + (1-dampening_t) wd_t x_t,   x_{t+1} = x_t - lr_t p_{t+1},

    and the rate is lr~_t = lr_t / (x_t x_{t+1}). Below the critical point nothing else changes: a zero
    momentum buffer stays exact. Where x_t would turn negative (lr wd > (1-sqrt(momentum))^2) the gauge is
    reset to p = 0 at the price of a correction.

    Convention: torch's. Coupled (L2) decay unless `decoupled`; the rate multiplies outside the buffer; lr_t,
    wd_t and momentum_t act in the step theta_t -> theta_{t+1}.

    Args:
        lr: learning rate, float or (T,), finite and >= 0.
        weight_decay: float or (T,), finite, 1 - lr*weight_decay > 0.
        momentum: float or (T,), in [0, 1).
        start: "zero" keeps the initial buffer as it is (Theorem 2.13 with alpha_{-1} = alpha_0 = 1);
            "stationary" starts on the root of Theorem 2.9, which needs the initial correction -kappa theta_0
            listed in `corrections`.
        nesterov: torch's Nesterov step.
        dampening: float or (T,), in [0, 1). (torch applies none in the step that creates the buffer: put 0
            there.)
        decoupled: theta <- (1 - lr wd) theta - lr update (SGDW, AdamW, Lion).
        degree: degree q of the update in the gradients: 1 for SGD; 0 for AdamW, Lion, sign and orthogonalised
            updates, which need `decoupled`. The rate is lr_t / (x_t^q x_{t+1}); AdamW's eps must be
            multiplied by x_t.
        steps: T, needed when no argument is an array.

    Returns:
        EquivalentSchedule.

    Raises:
        ValueError: an argument breaks its condition, or lengths differ.
        TypeError: an argument is not numeric.

    Example:
        >>> schedule = equivalent_schedule(0.1, 5e-4, steps=3)
        >>> bool(np.allclose(schedule.lr, 0.1 * (1 - 5e-5) ** np.array([-1.0, -3.0, -5.0]), rtol=1e-14))
        True

    Source: Li & Arora (2020), arXiv 1910.07454, Theorem 2.13; the form as a scalar run is this project's.

    """
    require_flags(nesterov=nesterov, decoupled=decoupled)
    hyper = columns(steps, lr=lr, weight_decay=weight_decay, momentum=momentum, dampening=dampening)
    rule = UpdateRule(decoupled=decoupled, nesterov=nesterov, degree=degree)
    _check_switches(start, rule, hyper)
    regauge = {}
    if start == "stationary" and not decoupled and hyper[2][0] > 0:
        first_lr, first_wd, first_momentum, first_dampening = (float(column[0]) for column in hyper)
        regauge[0] = stationary_ratio(first_lr, (1 - first_dampening) * first_wd, first_momentum)
    return run_gauge(hyper, regauge, rule)


def _check_switches(start: str, rule: UpdateRule, hyper: Sequence[FloatArray]) -> None:
    lr, weight_decay, momentum, dampening = hyper
    checked_choice("start", start, ("zero", "stationary"))
    if not rule.nesterov:
        return
    if start == "stationary":
        raise ValueError("start must be 'zero' when nesterov=True, got 'stationary'")
    require("dampening", dampening, "0 when nesterov=True, as in torch", dampening == 0, at="step")
    if not rule.decoupled:
        kept = lr * weight_decay * (1 + momentum) < 1
        condition = "such that lr*weight_decay*(1+momentum) < 1 when nesterov=True"
        require("weight_decay", weight_decay, condition, kept, at="step")


def run_gauge(
    hyper: Sequence[FloatArray], regauge: Mapping[int, float], rule: UpdateRule = RULES["sgd"]
) -> EquivalentSchedule:
    """Run the recursion over the columns (lr, wd, momentum, dampening).

    `regauge` sets kappa before the given steps.
    """
    advance = advance_by(rule)
    # `lost` is Kahan's compensation: a million small logarithms are summed
    log_scale, lost, ratio = 0.0, 0.0, 0.0
    scales, ratios, gauges = array("d", [0.0]), array("d"), array("d")
    corrections: dict[int, float] = {}
    rows = zip(*(column.tolist() for column in hyper), strict=True)
    for t, (lr, wd, momentum, dampening) in enumerate(rows):
        target, step = advance(regauge.get(t, ratio), lr, wd, momentum, dampening)
        if target != ratio or t in regauge:
            corrections[t] = (ratio - target) * math.exp(2.0 * log_scale)
        ratios.append(target)
        gauges.extend(step[2:])
        ratio = step.ratio
        term = math.log1p(-step.decrease) - lost
        total = log_scale + term
        lost, log_scale = (total - log_scale) - term, total
        scales.append(log_scale)
    rate_gain, run_momentum, before, after = np.array(gauges).reshape(-1, 4).T
    scale = np.array(scales)
    with np.errstate(divide="ignore"):  # log 0 = -inf is what a rate of 0 means
        log_lr = np.log(hyper[0]) + np.log(rate_gain) - rule.degree * scale[:-1] - scale[1:]
    ratios.append(ratio)
    return EquivalentSchedule(
        log_lr=_frozen(log_lr),
        log_scale=_frozen(scale),
        buffer_ratio=_frozen(np.array(ratios)),
        momentum=_frozen(run_momentum),
        gain_before=_frozen(before),
        gain_after=_frozen(after),
        corrections=MappingProxyType(corrections),
    )


def _frozen(values: FloatArray) -> FloatArray:
    values = np.ascontiguousarray(values)
    values.setflags(write=False)
    return values


def stationary_ratio(lr: float, weight_decay: float, momentum: float) -> float:
    """The fixed point kappa = wd / (alpha - momentum) of the recursion."""
    return weight_decay / (growth_factor(lr, weight_decay, momentum) - momentum)


def follow(optimizer: Optimizer, schedule: EquivalentSchedule, t: int) -> None:
    """Prepare a stock optimizer for step t of the run without weight decay; call it before `optimizer.step()`.

    Multiplies the momentum buffer by the gains, adds the correction where there is one, and sets lr, momentum
    and weight_decay=0. Where some groups are tagged `scale_invariant=True` only those follow; otherwise all
    do. Needs the whole schedule in the float range; `ExpLR` does not.

    Args:
        optimizer: SGD with the momentum and nesterov flag of the original run, or AdamW.
        schedule: from `equivalent_schedule`, `texp` and so on.
        t: the step, 0 <= t < schedule.steps; every step must be followed, in order.

    Raises:
        TypeError: the optimizer's decay has no gauge, or an argument is of another type.
        ValueError: t is out of range or not the optimizer's first, or its rate exceeds the float range.

    Example:
        >>> import torch
        >>> from normcore.equivalence.theorems import texp_plus_plus
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0, momentum=0.9)
        >>> follow(optimizer, texp_plus_plus(0.1, 0.5, 0.9, steps=2), 0)
        >>> round(optimizer.param_groups[0]["lr"], 6), optimizer.param_groups[0]["weight_decay"]
        (0.105263, 0.0)

    Source: Li & Arora (2020), arXiv 1910.07454, Theorems 2.12 and 2.13.

    """
    optimizer = unwrapped(optimizer)
    check_supported(optimizer)
    require_type("schedule", schedule, EquivalentSchedule, "an EquivalentSchedule")
    if checked_count("t", t, least=0) >= schedule.steps:
        raise ValueError(f"t must be in [0, {schedule.steps}), got {t!r}")
    if schedule.log_lr[t] > LARGEST:
        raise ValueError(f"t must have a rate in the float range, got {t!r}: use ExpLR, which rebases")
    lr = math.exp(schedule.log_lr[t])
    groups = [g for g in optimizer.param_groups if g.get("scale_invariant")] or optimizer.param_groups
    params = [p for group in groups for p in group["params"]]
    if t > 0:
        if schedule.momentum[t - 1] > 0 and not any(map(optimizer.state.get, params)):
            raise ValueError(f"t must be 0 for an optimizer that has taken no step, got {t!r}")
        scale_buffers(optimizer, params, float(schedule.gain_after[t - 1]))
    if t in schedule.corrections:
        shift_buffer(optimizer, params, schedule.corrections[t])
    scale_buffers(optimizer, params, float(schedule.gain_before[t]))
    for group in groups:
        group.update(lr=lr, weight_decay=0.0)
        if "momentum" in group:
            group["momentum"] = float(schedule.momentum[t])
