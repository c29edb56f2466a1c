"""Plain nets: scale-invariant in their trained weights unless asked otherwise; and several nets as one.

The recipe: no bias in front of a norm, norms without affine parameters and with an eps as small
as torch allows, and a head that stays at its random initialisation. Each weight is then followed
by its own norm, so that the output does not change when any one of them is multiplied by c > 0.
"""

import copy
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normcore.checks import checked_count, checked_counts, require_type
from normcore.lab.nets.layers import (
    ACTIVATIONS,
    SMALLEST_EPS,
    checked_eps,
    make_head,
    norm_layer,
    seeded,
    weight_layer,
)


def mlp(
    sizes: Sequence[int],
    *,
    norm: str = "layer",
    activation: str = "relu",
    head: str = "frozen",
    affine: bool = False,
    eps: float | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Build a multilayer perceptron: flatten, then linear-norm-activation, then the head.

    Args:
        sizes: (inputs, hidden, ..., classes).
        norm: "layer", "batch", "group", "weight-standardised" (each unit's weights, in the forward
            pass) or "none".
        activation: "relu", "leaky_relu" (slope 0.2), "tanh" or "identity".
        head: "frozen" (random) or "trained".
        affine: whether the norms have gains and biases, which are trained.
        eps: of the norms; by default 0, or as good as 0 where torch refuses it.
        seed: of the initial weights; torch's own generator does not move.
        dtype: float32 or float64.

    Raises:
        ValueError: a name or the dtype is unknown, or sizes has fewer than three entries.

    Example:
        >>> net = mlp((64, 16, 10))
        >>> [tuple(p.shape) for p in net.parameters() if p.requires_grad]
        [(16, 64)]

    """
    eps, sizes = checked_eps(eps, norm, dtype, head, affine, activation), checked_counts("sizes", sizes)
    if len(sizes) < 3:
        raise ValueError(f"sizes must be (inputs, hidden, ..., classes), got {sizes}")
    with seeded(seed):
        layers = _layers(norm, 0, itertools.pairwise(sizes[:-1]), activation, affine, eps)
        return nn.Sequential(nn.Flatten(), *layers, make_head(sizes[-2], sizes[-1], head)).to(dtype)


def cnn(channels: Sequence[int] = (8, 16), **options: Any) -> nn.Sequential:
    """Build a VGG-style net: conv3x3-norm-activation for each width, mean over the image, head.

    Args:
        channels: widths of the convolutions.
        **options: strides (by default 1, then 2 for each later one); norm="batch", "group",
            "layer", "instance", "weight-standardised" or "none"; kernel=3, odd; classes=10;
            in_channels=1; activation, head, affine, eps, seed, dtype as in `mlp`.

    Raises:
        ValueError: a name or the dtype is unknown, or the number of strides is wrong.

    Example:
        >>> cnn((8, 16))(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    """
    return nn.Sequential(*_conv_net(2, channels, **options))


def cnn1d(channels: Sequence[int] = (16, 32, 32), *, in_channels: int = 1, **options: Any) -> nn.Sequential:
    """Build the same net for signals: conv3-norm-activation for each width, mean over time, head.

    Args:
        channels: widths of the convolutions.
        in_channels: of the signals, which come as (N, in_channels, L) or as (N, in_channels*L).
        **options: as in `cnn`.

    Raises:
        ValueError: a name or the dtype is unknown, or the number of strides is wrong.

    Example:
        >>> cnn1d()(torch.randn(2, 40)).shape
        torch.Size([2, 10])

    """
    layers = _conv_net(1, channels, in_channels=in_channels, **options)
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (in_channels, -1)), *layers)


def _layers(
    norm: str, dims: int, shapes: Iterable[tuple[int, ...]], activation: str, affine: bool, eps: float
) -> list[nn.Module]:
    """Weights, norm and activation for each shape: (fan_in, width), then kernel and stride if any."""
    layers: list[nn.Module] = []
    for fan_in, width, *window in shapes:
        layers += [
            weight_layer(norm, dims, fan_in, width, *window, activation=activation, eps=eps),
            norm_layer(norm, width, dims=dims, affine=affine, eps=eps),
            ACTIVATIONS[activation](),
        ]
    return layers


def _conv_net(
    dims: int,
    channels: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    kernel: int = 3,
    norm: str = "batch",
    activation: str = "relu",
    head: str = "frozen",
    affine: bool = False,
    eps: float | None = None,
    classes: int = 10,
    in_channels: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    eps = checked_eps(eps, norm, dtype, head, affine, activation)
    channels, default = checked_counts("channels", channels), [1, *[2] * (len(channels) - 1)]
    strides = checked_counts("strides", default if strides is None else strides)
    for name, count in (("kernel", kernel), ("classes", classes), ("in_channels", in_channels)):
        checked_count(name, count)
    if not channels or len(strides) != len(channels):
        raise ValueError(f"channels and strides must be as many, and some, got {channels} and {strides}")
    with seeded(seed):
        inputs, kernels = [in_channels, *channels[:-1]], [kernel] * len(channels)
        shapes = zip(inputs, channels, kernels, strides, strict=True)
        layers = _layers(norm, dims, shapes, activation, affine, eps)
        pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[dims - 1](1)
        return nn.Sequential(*layers, pool, nn.Flatten(), make_head(channels[-1], classes, head)).to(dtype)


class _Beside(nn.Sequential):
    """What its layers make of x, added to x."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)  # type: ignore[no-any-return]


def resnet9(
    widths: Sequence[int], head_scale: float, channels: int, classes: int, seed: int = 0
) -> nn.Module:
    """Build a ResNet-9-like net, scale-invariant in each trained weight, for images from 8 x 8; float32.

    Eight conv3x3-BatchNorm-ReLU of four widths, two pairs of them beside an identity, and a frozen orthogonal head.
    """

    def convs(*pairs: tuple[int, int]) -> list[nn.Module]:
        return _layers("batch", 2, [(*pair, 3) for pair in pairs], "relu", False, SMALLEST_EPS[torch.float32])

    with seeded(seed):
        a, b, c, d = checked_counts("widths", widths)
        layers = [*convs((channels, a), (a, b)), nn.MaxPool2d(2), _Beside(*convs((b, b), (b, b)))]
        layers += [*convs((b, c)), nn.MaxPool2d(2), *convs((c, d)), nn.MaxPool2d(2)]
        layers += [_Beside(*convs((d, d), (d, d))), nn.AdaptiveMaxPool2d(1), nn.Flatten()]
        head = make_head(d, classes, "frozen")
        nn.init.orthogonal_(head.weight, gain=head_scale)
        return nn.Sequential(*layers, head)


def side_by_side(nets: Sequence[nn.Sequential]) -> nn.Sequential:
    """One net, channels R C, that computes what each of these does with its own C channels."""
    require_type("nets", nets, Sequence, "a list of torch.nn.Sequential")
    for net in nets:
        require_type("nets", net, nn.Sequential, "a list of torch.nn.Sequential")
    if not nets:
        raise ValueError("nets must be at least one, got none")
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in nets]
    head = nets[0][-1]
    if (
        any(shape != shapes[0] for shape in shapes)
        or not isinstance(head, nn.Linear)
        or head.bias is not None
    ):
        raise ValueError("nets must be of one make, with a Linear layer without bias at the end, got others")
    *layers, _ = wide = copy.deepcopy(nets[0])
    wide[-1] = _Heads([net[-1] for net in nets])
    for name, layer in nn.Sequential(*layers).named_modules():
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        if own and not isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            raise ValueError(f"nets must have convolutions and BatchNorm alone, got a {type(layer).__name__}")
        for kind, tensor in own:
            if tensor.ndim:  # all but a count of batches
                parts = [getattr(net.get_submodule(name), kind).detach() for net in nets]
                tensor.data = torch.cat(parts)
        if isinstance(layer, nn.Conv2d):
            layer.groups *= len(nets)
    return wide


class _Heads(nn.Module):
    """Last layers side by side: features (B, R F) to outputs (R, B, K)."""

    def __init__(self, heads: Sequence[nn.Linear]) -> None:
        super().__init__()
        trained = heads[0].weight.requires_grad
        self.weight = nn.Parameter(
            torch.stack([head.weight.detach() for head in heads]), requires_grad=trained
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.unflatten(1, (len(self.weight), -1)).transpose(0, 1), self.weight.transpose(1, 2))
