"""How the norm and the effective learning rate travel from one equilibrium to the next."""

import math

from normcore.checks import checked_number, require, require_range
from normcore.norm_dynamics.equilibrium import decay_per_step, equilibrium
from normcore.norm_dynamics.rates import Number, apply, common, intrinsic_lr, look_up, plain, where


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
    t, r, q, lr, weight_decay, momentum = common(
        **change, lr=lr, weight_decay=weight_decay, momentum=momentum
    )
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
