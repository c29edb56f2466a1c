"""Wrong labels on purpose: what keeps the gradient noise alive once a net could fit everything."""

import torch
from torch import Tensor


def noisy_labels(y: Tensor, fraction: float, *, classes: int = 10, seed: int = 0) -> Tensor:
    """Replace a fraction of the labels, once and for all, by uniform draws from all classes.

    One in `classes` of the replaced labels is right by chance.

    Args:
        y: (N,) labels.
        fraction: of them to replace, between 0 and 1; rounded down to whole labels.
        classes: to draw from.
        seed: of the choice and of the draws.

    Returns:
        A new (N,) tensor.

    Raises:
        ValueError: fraction is not in [0, 1], or classes is below 1.

    Example:
        >>> y = torch.zeros(1000, dtype=torch.int64)
        >>> int((noisy_labels(y, 0.2) != y).sum()) in range(150, 200)
        True

    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction!r}")
    if classes < 1:
        raise ValueError(f"classes must be >= 1, got {classes!r}")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(y), generator=generator)[: int(fraction * len(y))]
    drawn = torch.randint(classes, (len(chosen),), generator=generator)
    noisy = y.clone()
    noisy[chosen.to(y.device)] = drawn.to(y)
    return noisy
