"""Where the norm of scale-invariant weights settles under weight decay, how fast they turn there, and how it gets there.

Each closed form is the stationary point of the second moments of the optimizer's own recursion, step by step,
not of its small-step limit; the way there is that of the limit. Three facts make the moments close: a gradient g
is orthogonal to w (scale invariance), |g|^2 = S/|w|^2, and, where there is momentum, the gradients have no mean
and are uncorrelated from step to step (gradient noise).
"""

import math
from dataclasses import dataclass

from normcore.checks import checked, checked_count, checked_number, require, require_momentum, require_range
from normcore.norm_dynamics.rates import Number, apply, common, intrinsic_lr, look_up, plain, where


@dataclass(frozen=True)
class Equilibrium:
    """The stationary state of scale-invariant weights. See `equilibrium`.

    Attributes:
        norm: |w|.
        effective_lr: lr/(1-momentum)/|w|^2; lr/|w| for AdamW and other updates of degree 0.
        angle: between w_t and w_{t+1}, radians a step.
        relaxation_steps: the time constant, in steps, with which |w|^4 (degree 0: |w|^2) approaches it:
            1/(4 lambda_e), degree 0: 1/(2 lambda_e), with lambda_e the intrinsic learning rate.

    """

    norm: Number
    effective_lr: Number
    angle: Number
    relaxation_steps: Number


def equilibrium(
    lr: Number,
    weight_decay: Number,
    momentum: Number = 0.0,
    *,
    grad_sq_norm: Number = 1.0,
    optimizer: str = "sgd",
    betas: tuple[float, float] | None = None,
    dim: int | None = None,
) -> Equilibrium:
    """Compute the norm, effective LR and angle per step at which weight decay and gradient noise balance.

    With h = lr*weight_decay, m = momentum, S = grad_sq_norm:

    * "sgd":      |w|^4 = lr S (1+m) / (weight_decay (1-m) (2(1+m) - h)),   cos angle = 1 - h/(1+m)
    * "nesterov": |w|^4 = lr S (1+m + h m(1+2m)) / (weight_decay (1-m+h m) (2(1+m) - h(1+2m))),
      cos angle = 1 - h (1+2m-2m^3 + h m(1+m)(1+2m)) / (1+m + h m(1+2m))
    * "adamw", "degree0": |w|^2 = lr^2 U^2 (1+a b)/((1-a^2)(1-a b)), cos angle = (a+b)/(1+a b) with a = 1-h,
      b = beta_1 or momentum, U the norm of the update
    * "sgdw": the same with U^2 = S/|w|^2/(1-m^2) and b = m

    What is exact. "sgd" without momentum: for any gradients with |g|^2 |w|^2 = S at each step, noise or not.
    With momentum, and "sgdw": for zero-mean noise with g orthogonal to the momentum buffer too; noise that is
    so on average only (finite dimension d) moves |w|^2 by a relative O(1/d) where momentum lets |w| fluctuate.
    The "sgd" angle needs no assumption on the noise: see `rho`. "degree0": for updates of mean square U^2 that
    are orthogonal to w apart from their memory b of earlier ones. "adamw": moreover in the limit in which the
    second moment does not move within the memory of the first and treats all entries alike, eps = 0.

    Convention: coupled decay for "sgd" and "nesterov", decoupled for the others. All steps alike: constant
    hyper-parameters, constant S.

    Args:
        lr: learning rate, > 0 (float, array or tensor, as weight_decay, momentum and grad_sq_norm).
        weight_decay: > 0, with h below 2(1+m) ("nesterov": (1+2m) h < 2(1+m); decoupled: h < 2).
        momentum: in [0, 1); for "degree0" the memory b of the update; not for "adamw", which has betas.
        grad_sq_norm: S > 0, the mean of |gradient of the batch loss|^2 at the unit vector w/|w|. For "adamw"
            and "degree0" U^2, the mean square of the update's norm.
        optimizer: "sgd", "nesterov", "sgdw", "adamw" or "degree0" (sign and normalized steps, decoupled).
        betas: of "adamw"; None is torch's (0.9, 0.999).
        dim: number of weights; for "adamw" and "degree0" in place of grad_sq_norm: U^2 = dim (1-b)/(1+b),
            what Adam's update has in pure noise, and U^2 = dim, that of a sign.

    Returns:
        Equilibrium, with numbers of the kind that came in.

    Raises:
        ValueError: an argument breaks its condition.
        TypeError: an argument is not made of numbers.

    Example:
        >>> state = equilibrium(0.1, 5e-4, 0.9)
        >>> round(state.angle, 7), round(state.relaxation_steps)  # sqrt(2 * 0.1 * 5e-4 / 1.9) = 0.0072548
        (0.0072548, 500)
        >>> round(equilibrium(1e-3, 0.1, optimizer="adamw", dim=10_000).norm, 2)  # about sqrt(lr dim / (2 wd))
        7.07

    Source: the rotation is that of Wan et al. (2021), arXiv 2006.08419, and Kosson et al. (2024), arXiv
    2305.17212, to leading order in h. |w|^4 for SGD: Li, Lyu & Arora (2020), arXiv 2010.02916, and Li, Malladi &
    Arora (2021), arXiv 2102.12470. The momentum forms at finite h are derived in this project.

    """
    family = look_up(optimizer)
    memory = _memory(momentum, optimizer, betas)
    size = _size(grad_sq_norm, dim, memory, optimizer)
    lr, weight_decay, m, size = common(lr=lr, weight_decay=weight_decay, momentum=memory, grad_sq_norm=size)
    require_range("grad_sq_norm", size, positive=True)
    h = decay_per_step(lr, weight_decay)
    turn = half_chord_square(lr, weight_decay, m, optimizer)
    if optimizer == "sgd":
        square = (lr * size * (1 + m) / (weight_decay * (1 - m) * (2 * (1 + m) - h))) ** 0.5
    elif optimizer == "nesterov":
        gain = (1 + m + h * m * (1 + 2 * m)) / (2 * (1 + m) - h * (1 + 2 * m))
        square = (lr * size * gain / (weight_decay * (1 - m + h * m))) ** 0.5
    else:
        a = 1 - h
        square = lr**2 * size * (1 + a * m) / (h * (2 - h) * (1 - a * m))
        square = square if family.power == 2 else (square / (1 - m**2)) ** 0.5
    rate = intrinsic_lr(lr, weight_decay, 0.0 if family.decoupled else m)
    effective = lr / square**0.5 if family.power == 2 else lr / (1 - m) / square
    angle = 2 * apply("arcsin", (turn / 2) ** 0.5)
    return Equilibrium(plain(square**0.5), plain(effective), plain(angle), plain(1 / (family.power * rate)))


def decay_per_step(lr: Number, weight_decay: Number) -> Number:
    """h = lr*weight_decay, of two positive numbers whose product a float can hold."""
    require_range("lr", lr, positive=True)
    require_range("weight_decay", weight_decay, positive=True)
    h = lr * weight_decay
    need = "such that lr*weight_decay neither vanishes nor overflows"
    require("weight_decay", weight_decay, need, (h > 0) & (h < math.inf))
    return h


def half_chord_square(lr: Number, weight_decay: Number, memory: Number, optimizer: str) -> Number:
    """1 - cos(angle per step) at equilibrium: half the squared chord between consecutive unit vectors."""
    require_momentum("momentum", memory)
    h, m = lr * weight_decay, memory
    if look_up(optimizer).decoupled:
        require("weight_decay", weight_decay, "such that lr*weight_decay < 2", h < 2)
        return h * (1 - m) / (1 + (1 - h) * m)
    if optimizer == "sgd":
        require("weight_decay", weight_decay, "such that lr*weight_decay < 2(1+momentum)", h < 2 * (1 + m))
        return h / (1 + m)
    need = "such that lr*weight_decay*(1+2 momentum) < 2(1+momentum)"
    require("weight_decay", weight_decay, need, h * (1 + 2 * m) < 2 * (1 + m))
    return h * (1 + 2 * m - 2 * m**3 + h * m * (1 + m) * (1 + 2 * m)) / (1 + m + h * m * (1 + 2 * m))


def _memory(momentum: Number, optimizer: str, betas: tuple[float, float] | None) -> Number:
    """The share of the last update that the next one keeps."""
    if optimizer != "adamw":
        if betas is not None:
            raise ValueError(
                f"betas must be None unless optimizer is 'adamw', got {betas!r} for {optimizer!r}"
            )
        return momentum
    (momentum,) = common(momentum=momentum)
    require("momentum", momentum, "0 for 'adamw', whose memory is betas[0]", momentum == 0)
    both = checked("betas", (0.9, 0.999) if betas is None else betas)
    if both.shape != (2,) or both.min() < 0 or both.max() >= 1:
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
    return float(both[0])


def _size(grad_sq_norm: Number, dim: int | None, memory: Number, optimizer: str) -> Number:
    """S, or U^2 for an update of degree 0."""
    if dim is None:
        return grad_sq_norm
    if look_up(optimizer).power != 2:
        need = "None unless optimizer is 'adamw' or 'degree0'"
        raise ValueError(f"dim must be {need}, got {dim!r} for {optimizer!r}")
    checked_count("dim", dim)
    if not (isinstance(grad_sq_norm, float) and grad_sq_norm == 1.0):
        raise ValueError(f"dim must stand in place of grad_sq_norm, got {dim!r} beside {grad_sq_norm!r}")
    return dim * (1 - memory) / (1 + memory) if optimizer == "adamw" else dim


def relaxation(
    t: Number,
    *,
    lr_ratio: Number = 1.0,
    weight_decay_ratio: Number = 1.0,
    lr: Number,
    weight_decay: Number,
    momentum: Number = 0.0,
    optimizer: str = "sgd",
    ratio_lr: Number | None = None,
    ratio_wd: Number | None = None,
) -> Number:
    """Compute the effective learning rate t steps after a change of lr and weight decay, relative to before.

    With r = lr_ratio, q = weight_decay_ratio, lambda_e the intrinsic learning rate before the change and p = 4 (AdamW and
    other updates of degree 0: 2),

        e(t)/e_before = [ 1/(r q) + (1/r^2 - 1/(r q)) exp(-p lambda_e r q t) ]^(-1/2):

    r at once, sqrt(r q) in the end, with the new time constant 1/(p lambda_e r q).

    Convention: the run is at its equilibrium before t = 0; lr and weight_decay are the values before the
    change, which are multiplied by the ratios from step 0 on. t counts steps since then: at t = 0 the new
    learning rate meets the old norm; t < 0 gives 1. Constant S = mean squared gradient at the unit vector;
    where S changes to S', compare e*sqrt(S). The closed form is that of the continuous limit: the iteration
    follows it within a relative O(lambda_e r q), and O(lambda_e r^2) right after an increase of lr.

    Args:
        t: steps since the change (float, array or tensor, as the others).
        lr_ratio: new over old learning rate, > 0.
        weight_decay_ratio: new over old weight decay, >= 0; at 0 the norm then grows for ever and the rate falls
            as t^(-1/2).
        lr: learning rate before the change, > 0.
        weight_decay: before the change, > 0.
        momentum: in [0, 1).
        optimizer: as in `equilibrium`. Decoupled ones have lambda_e = lr*weight_decay, whatever the momentum.
        ratio_lr: deprecated name of lr_ratio.
        ratio_wd: deprecated name of weight_decay_ratio.

    Returns:
        e(t)/e_before, of the kind that came in.

    Raises:
        ValueError: an argument breaks its condition.
        TypeError: an argument is not made of numbers.

    Example:
        >>> before = dict(lr=0.1, weight_decay=5e-4, momentum=0.9)
        >>> [round(float(e), 4) for e in relaxation([-1, 0, 5000, 10**6], lr_ratio=0.1, **before)]
        [1.0, 0.1, 0.1523, 0.3162]
        >>> round(relaxation(10**6, lr_ratio=0.1, weight_decay_ratio=10.0, **before), 4)
        1.0

    Source: Li, Lyu & Arora (2020), arXiv 2010.02916, for a decay of the learning rate; the general form is this
    project's.

    """
    family = look_up(optimizer)
    lr_ratio = lr_ratio if ratio_lr is None else ratio_lr
    weight_decay_ratio = weight_decay_ratio if ratio_wd is None else ratio_wd
    change = {"t": t, "lr_ratio": lr_ratio, "weight_decay_ratio": weight_decay_ratio}
    before = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
    t, r, q, lr, weight_decay, momentum = common(**change, **before)
    require_range("lr_ratio", r, positive=True)
    require_range("weight_decay_ratio", q)
    require("t", t, "finite", apply("isfinite", t))
    decay_per_step(lr, weight_decay)
    rate = family.power * intrinsic_lr(lr, weight_decay, 0.0 * momentum if family.decoupled else momentum)
    passed = rate * where(t > 0, t, 0.0 * q)  # in units of the old time constant
    x = passed * r * q
    grown = where(q > 0, -apply("expm1", -x) / (r * where(q > 0, q, 1.0 + q)), passed)
    after = (apply("exp", -x) / r**2 + grown) ** -0.5
    return plain(where(t < 0, 1.0 + 0.0 * after, after))


def time_to_equilibrium(
    norm: Number,
    lr: Number,
    weight_decay: Number,
    momentum: Number = 0.0,
    *,
    tolerance: float = 0.05,
    grad_sq_norm: Number = 1.0,
    optimizer: str = "sgd",
    betas: tuple[float, float] | None = None,
    dim: int | None = None,
) -> Number:
    """Compute how many steps it takes the norm to come within a relative tolerance of its equilibrium.

    With p = 4 (degree 0: 2) and q = (norm/equilibrium norm)^p - 1, which decays as exp(-p lambda_e t):
    t = ln(q / q_end) / (p lambda_e) with q_end = (1 +- tolerance)^p - 1, the sign that of q.

    Convention: constant hyper-parameters and constant S; the continuous limit, as in `relaxation`. From far above
    the time grows with the logarithm of the norm. From below it is at most ln(1/|q_end|)/(p lambda_e), until,
    for SGD, a norm under about (2 lambda_e)^(1/4) of its equilibrium: there the first step turns the weights
    right round and throws them far above. From below the first step is therefore taken as it is,
    |w'|^2 = (1-h)^2 |w|^2 + lr^2 S/|w|^2 (with momentum the kick is spread over about 1/(1-momentum) steps).

    Args:
        norm: |w| now, > 0.
        lr: as in `equilibrium`, and so are the others.
        tolerance: in (0, 1).

    Returns:
        Steps >= 0, not rounded; 0 where the norm is within the tolerance already.

    Raises:
        ValueError: an argument breaks its condition.
        TypeError: an argument is not made of numbers.

    Example:
        >>> target = equilibrium(0.1, 0.01).norm
        >>> [round(time_to_equilibrium(c * target, 0.1, 0.01)) for c in (0.01, 0.5, 1.01, 2.0, 4.0)]
        [1882, 405, 0, 1061, 1769]

    """
    tolerance = checked_number("tolerance", tolerance, above=0.0, below=1.0)
    family = look_up(optimizer)
    state = equilibrium(
        lr, weight_decay, momentum, grad_sq_norm=grad_sq_norm, optimizer=optimizer, betas=betas, dim=dim
    )
    norm, target, constant = common(norm=norm, target=state.norm, constant=state.relaxation_steps)
    require_range("norm", norm, positive=True)
    p, far = family.power, norm / target
    low, first = 1.0 - far > tolerance, 0.0 * far
    if p == 4:  # one step as it is, since from far below it may leap over the target
        h, near = 0.25 / constant, where(low, far, 1.0 + first)
        kick = (h * (2 - h)) ** 0.5 / near
        far = where(low, kick * (1 + ((1 - h) * near / kick) ** 2) ** 0.5, far)
        first = where(low, 1.0 + first, first)
    # |far^p - 1| by its logarithm, since the power may overflow; 1e-300 stands for 0, right at the equilibrium.
    size = p * apply("log", far)
    gap = where(size > 0, size, 0.0 * size) + apply("log", 1e-300 - apply("expm1", -abs(size)))
    above, below = math.log((1.0 + tolerance) ** p - 1.0), math.log(1.0 - (1.0 - tolerance) ** p)
    waiting = gap - where(size > 0, above + 0.0 * size, below + 0.0 * size)
    return plain(first + constant * where(waiting > 0, waiting, 0.0 * size))
