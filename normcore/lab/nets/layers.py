"""The layers that small nets share, by name, and the plain nets that are one layer behind the other.

Nets are scale-invariant in their trained weights unless asked otherwise: no bias in front of a norm, norms without
affine parameters and with an eps as small as torch allows, and a head that stays at its random initialisation. Each
weight is then followed by its own norm, so that the output does not change when any one of them is multiplied by
c > 0.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from normcore.checks import (
    checked_choice,
    checked_count,
    checked_counts,
    checked_number,
    checked_seed,
    require_flags,
    require_type,
)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within this context tensors are made and drawn on the processor, from `seed`, whatever the default device.

    Afterwards every generator is where it was. (torch.manual_seed would also start those of all GPUs anew.)
    """
    generator = torch.Generator().manual_seed(checked_seed(seed))
    with torch.random.fork_rng(devices=()), torch.device("cpu"):
        torch.set_rng_state(generator.get_state())
        yield


def make_head(features: int, classes: int, kind: str) -> nn.Linear:
    """Make the last layer, "frozen" or "trained", without bias: N(0, 1/features) weights, rows of expected length 1."""
    head = nn.Linear(features, classes, bias=False)
    nn.init.normal_(head.weight, std=features**-0.5)
    head.weight.requires_grad_(kind == "trained")
    return head


WEIGHT_STANDARDISED = "weight-standardised"

SMALLEST_EPS = {dtype: torch.finfo(dtype).tiny for dtype in (torch.float64, torch.float32)}
"""BatchNorm refuses eps = 0 in training; a number that rounds to 0 gives nan on constant channels."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}
"""Names of the activations; all but tanh keep the degree of homogeneity."""

VARIANCES = {"relu": 0.5 - 0.5 / math.pi, "leaky_relu": 0.52 - 0.32 / math.pi, "tanh": 0.394, "identity": 1.0}
"""The variance of each activation of N(0, 1): standardised weights divide by its root."""


class Standardised:
    """Standardises the weights of each unit or filter in the forward pass of the layer that it is mixed into."""

    eps, gain = 0.0, 1.0

    def forward(self: Any, x: Tensor) -> Tensor:
        weight = standardised(self.weight, self.eps, self.gain)
        out: Tensor = F.linear(x, weight) if self.weight.ndim == 2 else self._conv_forward(x, weight, None)
        return out


class StandardisedLinear(Standardised, nn.Linear):
    """For features."""


class StandardisedConv1d(Standardised, nn.Conv1d):
    """For signals."""


class StandardisedConv2d(Standardised, nn.Conv2d):
    """For images."""


PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d)
STANDARDISED = (StandardisedLinear, StandardisedConv1d, StandardisedConv2d)
"""Layers by the dimensions of the signal."""


class Affine(nn.Module):
    """A trained gain and shift for each channel, where weights rather than outputs are normalised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2))
        return x * self.weight.view(shape) + self.bias.view(shape)


def standardised(weight: Tensor, eps: float = 0.0, gain: float = 1.0) -> Tensor:
    """Standardise each filter: gain/sqrt(fan_in) * (w - mean(w)) / sqrt(var(w) + eps).

    Mean and (biased) variance run over the fan_in weights of one output of (outputs, inputs, ...). The constant
    1/sqrt(fan_in) keeps the size of the signal, which nothing else in the net would. With eps = 0 the result is
    invariant under scaling of each filter, and nan for a filter of equal weights.

    Source: Qiao et al. (2019), arXiv 1903.10520; the scale is that of Brock et al. (2021), arXiv 2101.08692.

    """
    filters = weight.flatten(1)
    var, mean = torch.var_mean(filters, dim=1, correction=0, keepdim=True)
    unit = (filters - mean) / (var + eps).sqrt()
    out: Tensor = (unit * (gain / math.sqrt(filters.shape[1]))).reshape(weight.shape)
    return out


def weight_layer(
    norm: str,
    dims: int,
    fan_in: int,
    width: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    activation: str = "relu",
    eps: float = 0.0,
) -> nn.Module:
    """Make a linear layer (dims 0) or a convolution of signals (1) or images (2), without bias.

    The convolution is padded so as to keep the size of the signal. `norm` is the net's: with "weight-standardised" the
    weights are standardised, with `eps`, and the activation of the net sets their constant factor.
    """
    if kernel % 2 == 0:
        raise ValueError(f"kernel must be odd, got {kernel}")
    standardise = norm == WEIGHT_STANDARDISED
    if standardise and fan_in * kernel**dims < 2:
        raise ValueError(f"norm={norm!r} must have at least 2 weights to an output, got {fan_in}")
    make: Any = (STANDARDISED if standardise else PLAIN)[dims]
    shape = (kernel, stride, kernel // 2) if dims else ()
    layer: nn.Module = make(fan_in, width, *shape, bias=False)
    if standardise:
        layer.eps, layer.gain = eps, VARIANCES[activation] ** -0.5  # type: ignore[assignment]
    return layer


def norm_layer(kind: str, channels: int, *, dims: int, affine: bool, eps: float) -> nn.Module:
    """Make a normalization layer by name, for inputs (N, C) (dims 0), (N, C, L) (1) or (N, C, H, W) (2).

    The kinds are "batch", "group" (up to four groups), "layer", "instance" (not for features), and "weight-standardised"
    and "none", which leave the signal as it is. `affine` gives it a gain and a bias, which are trained.
    """
    if kind == "batch":
        make = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
        return make(channels, eps=eps, affine=affine)
    if kind == "layer" and not dims:
        return nn.LayerNorm(channels, eps=eps, elementwise_affine=affine)
    if kind in ("layer", "group"):
        groups = 1 if kind == "layer" else math.gcd(4, channels)
        return nn.GroupNorm(groups, channels, eps=eps, affine=affine)
    if kind == "instance" and dims:
        return (nn.InstanceNorm1d, nn.InstanceNorm2d)[dims - 1](channels, eps=eps, affine=affine)
    if kind == WEIGHT_STANDARDISED:
        return Affine(channels) if affine else nn.Identity()
    if kind == "none":
        return nn.Identity()
    known = "'batch', 'group', 'layer', 'weight-standardised', 'instance' (images and signals only) or 'none'"
    raise ValueError(f"norm must be {known}, got {kind!r}")


def require_precision(dtype: torch.dtype) -> None:
    """Raise TypeError or ValueError unless this is float32 or float64."""
    require_type("dtype", dtype, torch.dtype, "a torch.dtype")
    if dtype not in SMALLEST_EPS:
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")


def checked_eps(
    eps: float | None, norm: str, dtype: torch.dtype, head: str, affine: bool, activation: str = "relu"
) -> float:
    """Refuse unknown names; the eps, by default the smallest torch takes: a tiny one for batch and instance norm, 0 for others."""
    checked_choice("head", head, ("frozen", "trained"))
    checked_choice("activation", activation, sorted(ACTIVATIONS))
    require_type("norm", norm, str, "a word")
    require_flags(affine=affine)
    require_precision(dtype)
    if eps is None:
        return SMALLEST_EPS[dtype] if norm in ("batch", "instance") else 0.0
    return checked_number("eps", eps, least=0.0)


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
        layers = normed_layers(norm, 0, itertools.pairwise(sizes[:-1]), activation, affine, eps)
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


def normed_layers(
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
        layers = normed_layers(norm, dims, shapes, activation, affine, eps)
        pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[dims - 1](1)
        return nn.Sequential(*layers, pool, nn.Flatten(), make_head(channels[-1], classes, head)).to(dtype)
