"""Where the norm of scale-invariant weights settles under weight decay, and how fast they turn there.

Each closed form is the stationary point of the second moments of the optimizer's own recursion, step by step,
not of its small-step limit. Three facts make the moments close: a gradient g is orthogonal to w (scale
invariance), |g|^2 = S/|w|^2, and, where there is momentum, the gradients have no mean and are uncorrelated
from step to step (gradient noise).
"""

import math
from dataclasses import dataclass

from normcore.checks import checked, checked_count, require, require_momentum, require_range
from normcore.norm_dynamics.rates import Number, apply, common, intrinsic_lr, look_up, plain


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


def rho(
    lr: Number,
    weight_decay: Number,
    momentum: Number = 0.0,
    *,
    norm_sq: Number,
    grad_sq: Number | None = None,
    overlap: Number = 0.0,
    moved_sq: Number | None = None,
) -> Number:
    """Compare what the gradients add to the norm with what weight decay takes: 1 at equilibrium.

    With means over steps G = mean|g|^2, R = mean|w|^2, D = mean|w_{t+1} - w_t|^2, P = mean <g, buffer before
    the step>, h = lr*weight_decay and m = momentum, one of

        from gradients: lr (1+m) (G + 2 m P) / (weight_decay (1-m) (2(1+m) - h) R)
        from movements: (1+m) D / (2 h R)

    Without momentum the first is lr G / ((2 - h) weight_decay R). Both are exact for scale-invariant weights
    under SGD with coupled decay up to the drift of R: no noise model, no small-step limit, no constant S.
    Below 1 the norm is falling towards its equilibrium, above 1 growing. P is 0 on average for
    zero-mean noise; in a net whose gradients point the same way for a while it is not.

    Args:
        lr: learning rate, > 0 (float, array or tensor, as the others).
        weight_decay: > 0.
        momentum: in [0, 1), with no dampening and not Nesterov's.
        norm_sq: R > 0, the mean over the window of |w_t|^2, before each step.
        grad_sq: G >= 0, over the same steps; without the weight-decay term.
        overlap: P.
        moved_sq: D >= 0, in place of grad_sq.

    Returns:
        rho, of the kind that came in.

    Raises:
        ValueError: an argument breaks its condition.
        TypeError: an argument is not made of numbers, or neither or both of grad_sq and moved_sq are given.

    Example:
        >>> round(rho(0.1, 0.01, norm_sq=4.0, grad_sq=0.7996), 12)
        1.0
        >>> round(rho(0.1, 0.01, 0.9, norm_sq=4.0, moved_sq=0.008 / 1.9), 12)
        1.0

    Source: without momentum Li, Malladi & Arora (2021), arXiv 2102.12470; the forms with momentum are this
    project's, from |w_{t+1}|^2 - |w_t|^2 = D_t + m (|w_t|^2 - |w_{t-1}|^2) + m D_{t-1} - 2 h |w_t|^2.

    """
    if (grad_sq is None) == (moved_sq is None):
        given = "neither" if grad_sq is None else "both"
        raise TypeError(f"one of grad_sq and moved_sq must be given, got {given}")
    name, measured = ("grad_sq", grad_sq) if moved_sq is None else ("moved_sq", moved_sq)
    settings = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
    means = {"norm_sq": norm_sq, "overlap": overlap, name: measured}
    lr, weight_decay, m, norm_sq, overlap, measured = common(**settings, **means)
    decay_per_step(lr, weight_decay)
    require_range("norm_sq", norm_sq, positive=True)
    require_range(name, measured)
    require("overlap", overlap, "finite", apply("isfinite", overlap))
    chord = half_chord_square(lr, weight_decay, m, "sgd")
    if moved_sq is not None:
        return plain(measured / (2 * chord * norm_sq))
    return plain(lr * (measured + 2 * m * overlap) / (weight_decay * (1 - m) * (2 - chord) * norm_sq))
