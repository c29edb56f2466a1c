"""The parts that small nets share: norms by name, activations by name, and the head."""

import math
from collections.abc import Callable

import torch
from torch import nn

SMALLEST_EPS = {torch.float64: 1e-30, torch.float32: 1e-12}
"""BatchNorm refuses eps = 0 in training; these are as good as 0 in their dtype."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}
"""Names of the activations; all but tanh keep the degree of homogeneity."""


class Head(nn.Linear):
    """The last layer: N(0, 1/fan_in) weights and no bias, frozen or trained."""

    def __init__(self, features: int, classes: int, kind: str) -> None:
        """Draw the weights."""
        super().__init__(features, classes, bias=False)
        nn.init.normal_(self.weight, std=features**-0.5)
        self.weight.requires_grad_(kind == "trained")


def norm_layer(kind: str, channels: int, *, images: bool, affine: bool, eps: float) -> nn.Module:
    """Make a normalization layer by name.

    Args:
        kind: "batch", "group" (up to four groups), "layer", "instance" (images only) or "none".
        channels: features, or channels of an image.
        images: whether the input is (N, C, H, W) rather than (N, C).
        affine: whether it has a gain and a bias, which are trained.
        eps: added to the variance.

    Raises:
        ValueError: the kind is unknown.

    """
    if kind == "batch":
        make = nn.BatchNorm2d if images else nn.BatchNorm1d
        return make(channels, eps=eps, affine=affine)
    if kind == "layer" and not images:
        return nn.LayerNorm(channels, eps=eps, elementwise_affine=affine)
    if kind in ("layer", "group"):
        groups = 1 if kind == "layer" else math.gcd(4, channels)
        return nn.GroupNorm(groups, channels, eps=eps, affine=affine)
    if kind == "instance" and images:
        return nn.InstanceNorm2d(channels, eps=eps, affine=affine)
    if kind == "none":
        return nn.Identity()
    known = "'batch', 'group', 'layer', 'instance' (images only) or 'none'"
    raise ValueError(f"norm must be {known}, got {kind!r}")


def smallest_eps(norm: str, dtype: torch.dtype) -> float:
    """The smallest eps torch takes: 0 for layer and group norm, 1e-30 or 1e-12 otherwise.

    With eps = 0 a sample that is constant everywhere gives nan: 0 divided by 0.

    Raises:
        ValueError: the dtype is neither float32 nor float64.

    """
    if dtype not in SMALLEST_EPS:
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    return 0.0 if norm in ("layer", "group") else SMALLEST_EPS[dtype]


def check_names(head: str, activation: str) -> None:
    """Refuse unknown names."""
    if head not in ("frozen", "trained"):
        raise ValueError(f"head must be 'frozen' or 'trained', got {head!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
