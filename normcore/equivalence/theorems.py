"""The theorems of Li & Arora (2020) as named special cases of `equivalent_schedule`, and the way back.

Each function says what initial state makes it exact. Coupled (L2) decay and torch's momentum convention
throughout; step t moves theta_t to theta_{t+1}.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from normcore.checks import (
    checked,
    checked_count,
    checked_number,
    columns,
    require,
    require_flags,
    require_type,
)
from normcore.equivalence.gauge import growth_factor
from normcore.equivalence.schedule import EquivalentSchedule, equivalent_schedule, run_gauge, stationary_ratio
from normcore.schedules import FloatArray


def exponential_lr(
    lr: float, weight_decay: float, momentum: float = 0.0, *, steps: int
) -> EquivalentSchedule:
    """Compute the exponential schedule lr~_t = lr alpha^(-2t-1) of a constant run (Theorems 2.1 and 2.9).

    Exact from theta~_0 = theta_0 when momentum = 0 (alpha = 1 - lr*weight_decay). With momentum alpha is
    `growth_factor`, and the buffer must start at buf_0 - kappa theta_0, kappa = weight_decay/(alpha -
    momentum): `corrections[0]` holds -kappa.

    Args:
        lr: learning rate, >= 0.
        weight_decay: >= 0.
        momentum: in [0, 1).
        steps: T, >= 1.

    Returns:
        EquivalentSchedule with theta_t = alpha^t theta~_t.

    Raises:
        ValueError: an argument breaks its condition, or lr*weight_decay > (1-sqrt(momentum))^2.

    Example:
        >>> schedule = exponential_lr(0.1, 5e-4, 0.9, steps=392)
        >>> round(float(np.exp(schedule.log_lr[391] - schedule.log_lr[0])), 5)
        1.48123

    Source: Li & Arora (2020), arXiv 1910.07454, Theorems 2.1 and 2.9; the buffer form of the initial state is
    this project's.

    """
    growth_factor(lr, weight_decay, momentum)  # refuses what lies beyond the critical point
    steps = checked_count("steps", steps)
    return equivalent_schedule(lr, weight_decay, momentum, start="stationary", steps=steps)


def texp(
    phases: Sequence[tuple[float, int]],
    weight_decay: float | Sequence[float],
    momentum: float = 0.0,
    *,
    instant_decay: bool = True,
) -> EquivalentSchedule:
    """Compute TEXP, the tapered exponential schedule that equals Step Decay with weight decay (Theorem 2.12).

    In phase I the rate grows by alpha_I^-2 a step; at its start it jumps by (lr_I/lr_{I-1}) / (alpha_I
    alpha_{I-1}) and the buffer takes the momentum correction (kappa_{I-1} - kappa_I) theta, kappa_I =
    weight_decay_I/(alpha_I - momentum). Exact from theta~_0 = theta_0 and the same buffer with the entries of
    `corrections`, the one before step 0 included.

    Args:
        phases: (lr, number of steps) for each phase, lr > 0.
        weight_decay: one value, or one for each phase.
        momentum: in [0, 1).
        instant_decay: False gives TEXP--, the same growth factors without the jump by lr_I/lr_{I-1}. It
            equals a constant rate lr_0 with weight decay weight_decay * lr_I/lr_0, and that is how it is
            computed.

    Returns:
        EquivalentSchedule.

    Raises:
        ValueError: an argument breaks its condition, or a phase lies beyond its critical point.

    Example:
        >>> schedule = texp([(0.1, 80), (0.01, 80)], 5e-4, 0.9)
        >>> sorted(schedule.corrections)  # one at the start of each phase
        [0, 80]

    Source: Li & Arora (2020), arXiv 1910.07454, Theorem 2.12; the explicit correction is this project's.

    """
    require_flags(instant_decay=instant_decay)
    rates, lengths = _phase_columns(phases)
    given = checked("weight_decay", weight_decay)
    if given.shape not in ((), rates.shape):
        need = f"one value or one for each of {len(rates)} phases"
        raise ValueError(f"weight_decay must be {need}, got shape {given.shape}")
    decays = np.broadcast_to(given, rates.shape)
    if not instant_decay:
        decays, rates = decays * rates / rates[0], np.full_like(rates, rates[0])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).tolist()
    regauge = {}
    for start, lr, wd in zip(starts, rates.tolist(), decays.tolist(), strict=True):
        ratio = stationary_ratio(lr, wd, momentum)
        if momentum > 0:
            regauge[start] = ratio
    each = {"lr": np.repeat(rates, lengths), "weight_decay": np.repeat(decays, lengths)}
    return run_gauge(columns(None, **each, momentum=momentum, dampening=0.0), regauge)


def _phase_columns(phases: Sequence[tuple[float, int]]) -> tuple[FloatArray, list[int]]:
    require_type("phases", phases, list | tuple, "a list of (lr, steps) pairs")
    if not phases:
        raise ValueError(f"phases must hold at least one (lr, steps) pair, got {phases!r}")
    rates, lengths = [], []
    for index, phase in enumerate(phases):
        require_type(f"phases[{index}]", phase, list | tuple, "a pair (lr, steps)")
        if len(phase) != 2:
            raise ValueError(f"phases must be (lr, steps) pairs, got {phase!r} at index {index}")
        rates.append(checked_number(f"lr of phases[{index}]", phase[0], above=0.0))
        lengths.append(checked_count(f"steps of phases[{index}]", phase[1]))
    return np.array(rates), lengths


def texp_plus_plus(
    lr: ArrayLike, weight_decay: ArrayLike, momentum: ArrayLike = 0.0, *, steps: int | None = None
) -> EquivalentSchedule:
    """Compute TEXP++, which a stock optimizer runs exactly from a zero buffer, for any learning-rate schedule (Theorem 2.13).

    lr~_t = P_t P_{t+1} lr_t with P_t = 1/x_t: `equivalent_schedule` with start="zero" (alpha_{-1} = alpha_0 =
    1), refused where it would need corrections.

    Args:
        lr: learning rate, float or (T,), >= 0.
        weight_decay: float or (T,).
        momentum: float or (T,), in [0, 1).
        steps: T, needed when no argument is an array.

    Returns:
        EquivalentSchedule with no corrections: the learning rates are all there is.

    Raises:
        ValueError: an argument breaks its condition, or the schedule lies beyond the critical point for so
            long that the gauge would turn negative.

    Example:
        >>> schedule = texp_plus_plus([0.1, 0.1, 0.01], 5e-4, 0.9)
        >>> dict(schedule.corrections), round(float(schedule.lr[0] / 0.1), 6)
        ({}, 1.00005)

    Source: Li & Arora (2020), arXiv 1910.07454, Theorem 2.13.

    """
    schedule = equivalent_schedule(lr, weight_decay, momentum, steps=steps)
    if schedule.corrections:
        step = min(schedule.corrections)
        raise ValueError(
            "lr, weight_decay and momentum must keep x_t > 0 without corrections, got a gauge that needs one "
            f"before step {step}: lr*weight_decay exceeds (1-sqrt(momentum))^2, or the two peak at different "
            "times; use equivalent_schedule, which lists the corrections"
        )
    return schedule


def equivalent_weight_decay(log_lr: ArrayLike, lr: ArrayLike, momentum: ArrayLike = 0.0) -> FloatArray:
    """Compute the weight decay that turns a run without it, at rates exp(log_lr), into one at the rates `lr`.

    The inverse of `equivalent_schedule` from a zero buffer: x_{t+1} = lr_t / (x_t lr~_t), p_{t+1} = (x_t -
    x_{t+1}) / lr_t, wd_t = (p_{t+1} - momentum_t p_t) / x_t. Rounding: wd_t is good to about 1e-16 *
    |log_lr_t| / lr_t.

    Args:
        log_lr: (T,) logarithm of the rates of the run without weight decay.
        lr: the rates the run with weight decay shall have, float or (T,), > 0.
        momentum: float or (T,), in [0, 1).

    Returns:
        (T,) weight decays; negative where the given rates grow more slowly than `lr` asks for.

    Raises:
        ValueError: an argument breaks its condition, or asks for a weight decay out of the float range.

    Example:
        >>> schedule = texp_plus_plus(0.1, 5e-4, 0.9, steps=50)
        >>> bool(np.allclose(equivalent_weight_decay(schedule.log_lr, 0.1, 0.9), 5e-4, rtol=1e-9))
        True

    Source: Li & Arora (2020), arXiv 1910.07454, Theorem 2.13 read backwards.

    """
    steps = np.size(log_lr)
    target, rates, momenta = columns(steps, log_lr=log_lr, lr=lr, momentum=momentum)
    require("lr", rates, "> 0", rates > 0, at="step")
    log_x, ratio, log_rates, decays = 0.0, 0.0, np.log(rates), np.empty(steps)
    with np.errstate(all="ignore"):
        for t in range(steps):
            log_alpha = log_rates[t] - target[t] - 2.0 * log_x
            shift = -np.expm1(log_alpha) / rates[t]
            decays[t] = shift - momenta[t] * ratio
            ratio = shift / np.exp(log_alpha)
            log_x += log_alpha
    require("log_lr", target, "such that its weight decay is finite", np.isfinite(decays), at="step")
    return decays
