"""Rho: one number, without assumptions, that says whether weights and weight decay are in balance."""

from normcore.elementwise import Number, common, plain, require_range
from normcore.equilibrium import half_chord_square


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
        TypeError: neither or both of grad_sq and moved_sq are given.

    Example:
        >>> round(rho(0.1, 0.01, norm_sq=4.0, grad_sq=0.7996), 12)
        1.0
        >>> round(rho(0.1, 0.01, 0.9, norm_sq=4.0, moved_sq=0.008 / 1.9), 12)
        1.0

    Source: without momentum Li, Malladi & Arora (2021), arXiv 2102.12470; the forms with momentum are this
    project's, from |w_{t+1}|^2 - |w_t|^2 = D_t + m (|w_t|^2 - |w_{t-1}|^2) + m D_{t-1} - 2 h |w_t|^2.

    """
    if (grad_sq is None) == (moved_sq is None):
        raise TypeError(
            "one of grad_sq and moved_sq must be given, got " + ("neither" if grad_sq is None else "both")
        )
    name, measured = ("grad_sq", grad_sq) if moved_sq is None else ("moved_sq", moved_sq)
    lr, weight_decay, m, norm_sq, overlap, measured = common(
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        norm_sq=norm_sq,
        overlap=overlap,
        **{name: measured},
    )
    require_range("lr", lr, positive=True)
    require_range("weight_decay", weight_decay, positive=True)
    require_range("norm_sq", norm_sq, positive=True)
    require_range(name, measured)
    chord = half_chord_square(lr, weight_decay, m, "sgd")
    if moved_sq is not None:
        return plain(measured / (2 * chord * norm_sq))
    return plain(lr * (measured + 2 * m * overlap) / (weight_decay * (1 - m) * (2 - chord) * norm_sq))
