"""The last layer of a net: random or a simplex frame, frozen or trained."""

import math

import torch
from torch import Tensor, nn


class Head(nn.Linear):
    """The last layer, without bias: N(0, 1/fan_in) weights, frozen or trained, or a frozen frame.

    Each row has (expected) length 1. The kinds are "frozen", "trained" and "etf", see `simplex_frame`.
    """

    def __init__(self, features: int, classes: int, kind: str) -> None:
        """Draw the weights; those of the frame are float64 until the net takes its dtype."""
        super().__init__(features, classes, bias=False)
        nn.init.normal_(self.weight, std=features**-0.5)
        if kind == "etf":
            self.weight = nn.Parameter(simplex_frame(classes, features))
        self.weight.requires_grad_(kind == "trained")


def simplex_frame(classes: int, features: int) -> Tensor:
    """Draw a simplex equiangular tight frame in a random position, float64, from torch's generator.

    The K rows have length 1 and the same angle between any two: M M' = K/(K-1) (I - 11'/K).

    Args:
        classes: K, >= 2.
        features: >= K - 1.

    Returns:
        M, (classes, features).

    Raises:
        ValueError: there are too few classes or features.

    Example:
        >>> frame = simplex_frame(3, 5)
        >>> (frame @ frame.T).round(decimals=3).tolist()
        [[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]]

    Source: Papyan, Han & Donoho (2020), arXiv 2008.08186.

    """
    if classes < 2:
        raise ValueError(f"classes must be >= 2 for an 'etf' head, got {classes}")
    if features < classes - 1:
        raise ValueError(
            f"features must be >= classes - 1 for an 'etf' head, got {features} for {classes} classes"
        )
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes
    basis = torch.linalg.qr(centred[:, :-1])[0]  # of the vectors that sum to 0
    draw = torch.randn(features, classes - 1, dtype=torch.float64)
    directions, r = torch.linalg.qr(draw)
    rotation = directions * r.diagonal().sign()  # with the signs, all positions are equally likely
    frame: Tensor = math.sqrt(classes / (classes - 1)) * basis @ rotation.T
    return frame
