"""Residual nets for small images, pre-activation and post-activation.

A sum keeps its degree of homogeneity only where both branches have the same. In the post-activation
net every branch ends in a norm: degree 0, and each weight is invariant alone. In the pre-activation
net every branch ends in a convolution behind a norm: degree 1, provided that the first block of
every stage puts a norm in its shortcut too; the final norm then removes one common factor of all
trained weights.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normcore.checks import checked_count, require_flags
from normcore.lab.nets.layers import checked_eps, make_head, norm_layer, seeded, weight_layer

MakeNorm = Callable[[int], nn.Module]
MakeConv = Callable[[int, int, int, int], nn.Module]
"""From input channels, output channels, kernel and stride."""


class PreActivationBlock(nn.Module):
    """norm-ReLU-conv twice, beside a shortcut: the identity, or norm-ReLU-1x1 convolution."""

    def __init__(
        self, fan_in: int, width: int, stride: int, conv: MakeConv, norm: MakeNorm, first: bool, bare: bool
    ) -> None:
        """Build the layers; `first` has a projection, and `bare` leaves out its norm."""
        super().__init__()
        self.norm1, self.conv1 = norm(fan_in), conv(fan_in, width, 3, stride)
        self.norm2, self.conv2 = norm(width), conv(width, width, 3, 1)
        layers = [] if bare else [norm(fan_in), nn.ReLU()]
        layers.append(conv(fan_in, width, 1, stride))
        self.shortcut = nn.Sequential(*layers) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = self.conv1(self.norm1(x).relu())
        return self.shortcut(x) + self.conv2(self.norm2(y).relu())  # type: ignore[no-any-return]


class PostActivationBlock(nn.Module):
    """conv-norm-ReLU-conv-norm, beside a shortcut (the identity, or 1x1 convolution-norm), ReLU."""

    def __init__(
        self, fan_in: int, width: int, stride: int, conv: MakeConv, norm: MakeNorm, first: bool, bare: bool
    ) -> None:
        """Build the layers; a change of width or size needs a projection."""
        super().__init__()
        self.conv1, self.norm1 = conv(fan_in, width, 3, stride), norm(width)
        self.conv2, self.norm2 = conv(width, width, 3, 1), norm(width)
        layers = [conv(fan_in, width, 1, stride)] + ([] if bare else [norm(width)])
        needed = first and (stride != 1 or fan_in != width)
        self.shortcut = nn.Sequential(*layers) if needed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (self.shortcut(x) + y).relu()  # type: ignore[no-any-return]


def preresnet(depth: int = 8, **options: Any) -> nn.Sequential:
    """Build a pre-activation ResNet: 3x3 stem, three stages of (depth-2)/6 blocks, norm-ReLU-mean.

    Invariant under one common factor of all trained weights, not of each alone: within a stage, the
    weights that end on the residual stream share their factor. (Standardised weights are invariant
    each alone.)

    Args:
        depth: 6n + 2; a head follows that is not counted as trained.
        **options: width=8 (of the first stage, doubled twice); norm="batch", "group", "layer",
            "instance", "weight-standardised" or "none"; norm_shortcut=True (False leaves the norm
            out of the shortcuts, which breaks the invariance: a control); head, affine, eps,
            classes, in_channels, seed, dtype as in `cnn`.

    Raises:
        ValueError: depth is not 6n + 2, or a name is unknown.

    Example:
        >>> preresnet(8)(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Source: He et al. (2016), arXiv 1603.05027, with the shortcut rule that makes it invariant.

    """
    return _residual_net(depth, PreActivationBlock, **options)


def resnet(depth: int = 8, **options: Any) -> nn.Sequential:
    """Build a post-activation ResNet: 3x3 stem-norm-ReLU, three stages of (depth-2)/6 blocks, mean.

    Every weight is followed by its own norm, so that each is invariant alone. Arguments as in
    `preresnet`.

    Raises:
        ValueError: depth is not 6n + 2, or a name is unknown.

    Example:
        >>> resnet(8)(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Source: He et al. (2015), arXiv 1512.03385.

    """
    return _residual_net(depth, PostActivationBlock, **options)


def _residual_net(
    depth: int,
    block: type[PreActivationBlock] | type[PostActivationBlock],
    *,
    width: int = 8,
    norm: str = "batch",
    norm_shortcut: bool = True,
    head: str = "frozen",
    affine: bool = False,
    eps: float | None = None,
    classes: int = 10,
    in_channels: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    for name, count in (("width", width), ("classes", classes), ("in_channels", in_channels)):
        checked_count(name, count)
    require_flags(norm_shortcut=norm_shortcut)
    if checked_count("depth", depth) < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 with n >= 1, got {depth!r}")
    small = checked_eps(eps, norm, dtype, head, affine)
    pre = block is PreActivationBlock

    def make_norm(channels: int) -> nn.Module:
        return norm_layer(norm, channels, dims=2, affine=affine, eps=small)

    def make_conv(*shape: int) -> nn.Module:
        return weight_layer(norm, 2, *shape, eps=small)

    with seeded(seed):
        layers: list[nn.Module] = [make_conv(in_channels, width, 3, 1)]
        layers += [] if pre else [make_norm(width), nn.ReLU()]
        fan_in = width
        for stage in range(3):
            for index in range((depth - 2) // 6):
                out, stride = width << stage, 2 if stage and not index else 1
                first, bare = index == 0, not norm_shortcut
                layers.append(block(fan_in, out, stride, make_conv, make_norm, first, bare))
                fan_in = out
        layers += [make_norm(fan_in), nn.ReLU()] if pre else []
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), make_head(fan_in, classes, head)]
        return nn.Sequential(*layers).to(dtype)
