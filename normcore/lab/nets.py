"""Plain nets that are scale-invariant in their trained weights unless asked otherwise.

The recipe: no bias in front of a norm, norms without affine parameters and with an eps as small
as torch allows, and a head that stays at its random initialisation. Each weight is then followed
by its own norm, so that the output does not change when any one of them is multiplied by c > 0.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from normcore.lab.layers import ACTIVATIONS, Head, check_names, norm_layer, smallest_eps


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
        norm: "layer", "batch", "group" or "none".
        activation: "relu", "leaky_relu" (slope 0.2), "tanh" or "identity".
        head: "frozen" or "trained".
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
    check_names(head, activation)
    if len(sizes) < 3:
        raise ValueError(f"sizes must be (inputs, hidden, ..., classes), got {tuple(sizes)}")
    eps = smallest_eps(norm, dtype) if eps is None else eps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, width in itertools.pairwise(sizes[:-1]):
            layers += [
                nn.Linear(fan_in, width, bias=False),
                norm_layer(norm, width, images=False, affine=affine, eps=eps),
                ACTIVATIONS[activation](),
            ]
        return nn.Sequential(*layers, Head(sizes[-2], sizes[-1], head)).to(dtype)


def cnn(
    channels: Sequence[int] = (8, 16),
    *,
    strides: Sequence[int] | None = None,
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
    """Build a VGG-style net: conv3x3-norm-activation for each width, mean over the image, head.

    Args:
        channels: widths of the convolutions.
        strides: of the convolutions; by default 1, then 2 for each later one.
        norm: "batch", "group", "layer", "instance" or "none".
        activation, head, affine, eps, seed, dtype: as in `mlp`.
        classes: outputs.
        in_channels: of the images.

    Raises:
        ValueError: a name or the dtype is unknown, or the number of strides is wrong.

    Example:
        >>> cnn((8, 16))(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    """
    check_names(head, activation)
    strides = [1] + [2] * (len(channels) - 1) if strides is None else strides
    if not channels or len(strides) != len(channels):
        raise ValueError(f"strides must hold one for each of {len(channels)} channels, got {strides}")
    eps = smallest_eps(norm, dtype) if eps is None else eps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        inputs = [in_channels, *channels[:-1]]
        for fan_in, width, stride in zip(inputs, channels, strides, strict=True):
            layers += [
                nn.Conv2d(fan_in, width, 3, stride, padding=1, bias=False),
                norm_layer(norm, width, images=True, affine=affine, eps=eps),
                ACTIVATIONS[activation](),
            ]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), Head(channels[-1], classes, head)]
        return nn.Sequential(*layers).to(dtype)
