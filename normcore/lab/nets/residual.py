"""Residual nets for small images: pre-activation, post-activation, and a transformer that reads them row by row.

A sum keeps its degree of homogeneity only where both branches have the same. In the post-activation
net every branch ends in a norm: degree 0, and each weight is invariant alone. In the pre-activation
net every branch ends in a convolution behind a norm: degree 1, provided that the first block of
every stage puts a norm in its shortcut too; the final norm then removes one common factor of all
trained weights.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from normcore.checks import checked_count, require_flags
from normcore.lab.nets.layers import (
    SMALLEST_EPS,
    checked_eps,
    make_head,
    norm_layer,
    normed_layers,
    seeded,
    weight_layer,
)

MakeNorm = Callable[[int], nn.Module]
MakeConv = Callable[[int, int, int, int], nn.Module]
"""From input channels, output channels, kernel and stride."""


class PreActivationBlock(nn.Module):
    """norm-ReLU-conv twice, beside a shortcut: the identity, or, in the first of a stage, norm-ReLU-1x1 convolution.

    `bare` leaves the norm out of the latter.
    """

    def __init__(
        self, fan_in: int, width: int, stride: int, conv: MakeConv, norm: MakeNorm, first: bool, bare: bool
    ) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(fan_in), conv(fan_in, width, 3, stride)
        self.norm2, self.conv2 = norm(width), conv(width, width, 3, 1)
        layers = [] if bare else [norm(fan_in), nn.ReLU()]
        layers.append(conv(fan_in, width, 1, stride))
        self.shortcut = nn.Sequential(*layers) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.norm1(x).relu())
        return self.shortcut(x) + self.conv2(self.norm2(y).relu())  # type: ignore[no-any-return]


class PostActivationBlock(nn.Module):
    """conv-norm-ReLU-conv-norm, beside a shortcut (the identity, or 1x1 convolution-norm where sizes change), ReLU."""

    def __init__(
        self, fan_in: int, width: int, stride: int, conv: MakeConv, norm: MakeNorm, first: bool, bare: bool
    ) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(fan_in, width, 3, stride), norm(width)
        self.conv2, self.norm2 = conv(width, width, 3, 1), norm(width)
        layers = [conv(fan_in, width, 1, stride)] + ([] if bare else [norm(width)])
        needed = first and (stride != 1 or fan_in != width)
        self.shortcut = nn.Sequential(*layers) if needed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
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
    make_norm = partial(norm_layer, norm, dims=2, affine=affine, eps=small)
    make_conv = partial(weight_layer, norm, 2, eps=small)
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


class Attention(nn.Module):
    """Self-attention of all tokens with all; queries and keys normalized head by head where asked."""

    def __init__(self, dim: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        norms = (nn.RMSNorm(dim // heads, eps=1e-6) if qk_norm else nn.Identity() for _ in range(2))
        self.q_norm, self.k_norm = norms

    def forward(self, x: Tensor) -> Tensor:
        all_heads = (part(x).unflatten(-1, (self.heads, -1)) for part in (self.q, self.k, self.v))
        q, k, v = (part.transpose(1, 2) for part in all_heads)
        mixed = scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Norm, attention, norm, two layers with GELU; each half beside the identity."""

    def __init__(self, dim: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads, qk_norm)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """See `transformer`; gives logits of images (batch, 1, pixels, pixels)."""

    def __init__(self, dim: int, blocks: int, heads: int, qk_norm: bool, pixels: int, classes: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(pixels, dim), nn.Parameter(0.1 * torch.randn(pixels, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, qk_norm) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.blocks(self.embed(x.squeeze(1)) + self.place)
        return self.head(self.norm(tokens).mean(dim=1))  # type: ignore[no-any-return]


def transformer(
    dim: int = 32,
    *,
    blocks: int = 2,
    heads: int = 2,
    qk_norm: bool = True,
    pixels: int = 8,
    classes: int = 10,
    seed: int = 0,
) -> nn.Module:
    """Build a pre-norm transformer whose tokens are the rows of a square grey image.

    With `qk_norm` each head's queries and keys pass through an RMSNorm of their own, so that the query and key
    weights are scale-invariant, each alone; without it no weight of the attention is.

    Args:
        dim: width of the residual stream, a multiple of heads.
        blocks: pairs of attention and MLP.
        heads: of the attention.
        qk_norm: whether queries and keys are normalized.
        pixels: on a side.
        classes: outputs.
        seed: of the weights; torch's generator is left alone.

    Raises:
        ValueError: dim is not a multiple of heads, or a count is below 1.

    Example:
        >>> transformer(16)(torch.randn(3, 1, 8, 8)).shape
        torch.Size([3, 10])

    Source: Henry et al. (2020), arXiv 2010.04245, for normalized queries and keys.

    """
    counts = {"dim": dim, "blocks": blocks, "heads": heads, "pixels": pixels, "classes": classes}
    for name, count in counts.items():
        checked_count(name, count)
    require_flags(qk_norm=qk_norm)
    if dim % heads:
        raise ValueError(f"dim must be a multiple of heads={heads}, got {dim!r}")
    with seeded(seed):
        return Transformer(dim, blocks, heads, qk_norm, pixels, classes)


class _Beside(nn.Sequential):
    """What its layers make of x, added to x."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)  # type: ignore[no-any-return]


def resnet9(width: int, head_scale: float, channels: int, classes: int, seed: int = 0) -> nn.Module:
    """Build a ResNet-9-like net, scale-invariant in each trained weight, for images from 8 x 8; float32.

    Eight conv3x3-BatchNorm-ReLU, of `width` channels and twice, four and eight times as many, two pairs of them beside an
    identity, and a frozen orthogonal head.
    """

    def convs(*pairs: tuple[int, int]) -> list[nn.Module]:
        shapes = [(*pair, 3) for pair in pairs]
        return normed_layers("batch", 2, shapes, "relu", False, SMALLEST_EPS[torch.float32])

    with seeded(seed):
        a, b, c, d = (checked_count("width", width) * times for times in (1, 2, 4, 8))
        layers = [*convs((channels, a), (a, b)), nn.MaxPool2d(2), _Beside(*convs((b, b), (b, b)))]
        layers += [*convs((b, c)), nn.MaxPool2d(2), *convs((c, d)), nn.MaxPool2d(2)]
        layers += [_Beside(*convs((d, d), (d, d))), nn.AdaptiveMaxPool2d(1), nn.Flatten()]
        head = make_head(d, classes, "frozen")
        nn.init.orthogonal_(head.weight, gain=head_scale)
        return nn.Sequential(*layers, head)
