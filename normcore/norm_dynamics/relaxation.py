"""How the norm and the effective learning rate travel from one equilibrium to the next."""

from normcore.elementwise import Number, apply, common, plain, require, require_range, where
from normcore.norm_dynamics.equilibrium import equilibrium
from normcore.norm_dynamics.rates import intrinsic_lr, look_up


def relaxation(
    t: Number,
    *,
    ratio_lr: Number = 1.0,
    ratio_wd: Number = 1.0,
    lr: Number,
    weight_decay: Number,
    momentum: Number = 0.0,
    optimizer: str = "sgd",
) -> Number:
    """Compute the effective learning rate t steps after a change of lr and weight decay, relative to before.

    With r = ratio_lr, q = ratio_wd, lambda_e the intrinsic learning rate before the change and p = 4 (AdamW and
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
        ratio_lr: new over old learning rate, > 0.
        ratio_wd: new over old weight decay, >= 0; at 0 the norm then grows for ever and the rate falls as
            t^(-1/2).
        lr: learning rate before the change, > 0.
        weight_decay: before the change, > 0.
        momentum: in [0, 1).
        optimizer: as in `equilibrium`. Decoupled ones have lambda_e = lr*weight_decay, whatever the momentum.

    Returns:
        e(t)/e_before, of the kind that came in.

    Raises:
        ValueError: an argument breaks its condition.

    Example:
        >>> before = dict(lr=0.1, weight_decay=5e-4, momentum=0.9)
        >>> [round(float(e), 4) for e in relaxation([-1, 0, 5000, 10**6], ratio_lr=0.1, **before)]
        [1.0, 0.1, 0.1523, 0.3162]
        >>> round(relaxation(10**6, ratio_lr=0.1, ratio_wd=10.0, **before), 4)
        1.0

    Source: Li, Lyu & Arora (2020), arXiv 2010.02916, for a decay of the learning rate; the general form is this
    project's.

    """
    family = look_up(optimizer)
    t, r, q, lr, weight_decay, momentum = common(
        t=t, ratio_lr=ratio_lr, ratio_wd=ratio_wd, lr=lr, weight_decay=weight_decay, momentum=momentum
    )
    require_range("ratio_lr", r, positive=True)
    require_range("ratio_wd", q)
    require_range("lr", lr, positive=True)
    require_range("weight_decay", weight_decay, positive=True)
    require("t", t, "finite", apply("isfinite", t))
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

    Example:
        >>> target = equilibrium(0.1, 0.01).norm
        >>> [round(time_to_equilibrium(c * target, 0.1, 0.01)) for c in (0.01, 0.5, 1.01, 2.0, 4.0)]
        [1882, 405, 0, 1061, 1769]

    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be in (0, 1), got {tolerance!r}")
    family = look_up(optimizer)
    state = equilibrium(
        lr, weight_decay, momentum, grad_sq_norm=grad_sq_norm, optimizer=optimizer, betas=betas, dim=dim
    )
    norm, target, constant = common(norm=norm, target=state.norm, constant=state.relaxation_steps)
    require_range("norm", norm, positive=True)
    far = norm / target
    low, first = 1.0 - far > tolerance, 0.0 * far
    if family.power == 4:  # one step as it is, since from far below it may leap over the target
        h = 0.25 / constant
        far = where(low, ((1 - h) ** 2 * far**2 + h * (2 - h) / far**2) ** 0.5, far)
        first = where(low, 1.0 + first, first)
    gap = far**family.power - 1.0
    above, below = (1.0 + tolerance) ** family.power - 1.0, 1.0 - (1.0 - tolerance) ** family.power
    ratio = abs(gap) / where(gap > 0, above + 0.0 * gap, below + 0.0 * gap)
    return plain(first + constant * apply("log", where(ratio > 1, ratio, 1.0 + 0.0 * ratio)))
