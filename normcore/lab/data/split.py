"""Which examples of a labelled set to keep, with the classes in balance."""

import torch
from torch import Tensor


def rank_in_class(labels: Tensor) -> Tensor:
    """Count, for each example, those of its class that come before it.

    Args:
        labels: (N,) integers >= 0.

    Returns:
        (N,) int64.

    Example:
        >>> rank_in_class(torch.tensor([7, 7, 0, 7])).tolist()
        [0, 1, 0, 2]

    """
    order, counts = labels.argsort(stable=True), labels.bincount()
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - first[labels[order]]
    return rank


def balanced(labels: Tensor, size: int, seed: int) -> Tensor:
    """Draw `size` examples at random, as many of each class as can be.

    A round takes one of each class that has any left; the last round may be cut short. For the same seed, a
    smaller draw is the beginning of a larger one.

    Args:
        labels: (N,) integers >= 0.
        size: at most N.
        seed: of the draw.

    Returns:
        (size,) indices.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 1, 1])
        >>> labels[balanced(labels, 6, seed=0)].bincount().tolist()
        [4, 2]

    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return order[rank_in_class(labels[order]).argsort(stable=True)[:size]]


def first_share(labels: Tensor, share: int) -> Tensor:
    """Mark the first 1/share of each class, rounded down.

    Args:
        labels: (N,) integers >= 0.
        share: 5 for a fifth.

    Returns:
        (N,) booleans.

    Example:
        >>> first_share(torch.tensor([0, 0, 1, 0, 0]), 2).tolist()
        [True, True, False, False, False]

    """
    return rank_in_class(labels) < labels.bincount()[labels] // share
