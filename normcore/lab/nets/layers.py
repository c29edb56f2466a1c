"""The parts that small nets share: weights, norms and activations by name."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def make_head(features: int, classes: int, kind: str) -> nn.Linear:
    """Make the last layer, without bias: N(0, 1/fan_in) weights, frozen or trained, or a frozen frame.

    Each row has (expected) length 1. The kinds are "frozen", "trained" and "etf", see `simplex_frame`, whose weights are
    float64 until the net takes its dtype.
    """
    head = nn.Linear(features, classes, bias=False)
    nn.init.normal_(head.weight, std=features**-0.5)
    if kind == "etf":
        head.weight = nn.Parameter(simplex_frame(classes, features))
    head.weight.requires_grad_(kind == "trained")
    return head


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


class StandardisedLinear(nn.Linear):
    """A linear layer that standardises each unit's weights in its forward pass."""

    eps, gain = 0.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        return F.linear(x, standardised(self.weight, self.eps, self.gain))


class StandardisedConv1d(nn.Conv1d):
    """A 1-d convolution that standardises each filter's weights in its forward pass."""

    eps, gain = 0.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        out: Tensor = self._conv_forward(x, standardised(self.weight, self.eps, self.gain), None)
        return out


class StandardisedConv2d(nn.Conv2d):
    """A 2-d convolution that standardises each filter's weights in its forward pass."""

    eps, gain = 0.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        out: Tensor = self._conv_forward(x, standardised(self.weight, self.eps, self.gain), None)
        return out


WEIGHTS = {
    0: (nn.Linear, StandardisedLinear),
    1: (nn.Conv1d, StandardisedConv1d),
    2: (nn.Conv2d, StandardisedConv2d),
}
"""Dimensions of the signal -> the plain layer and the one with standardised weights."""


class Affine(nn.Module):
    """A trained gain and shift for each channel, where weights rather than outputs are normalised."""

    def __init__(self, channels: int) -> None:
        """Start at gain 1 and shift 0."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Gain times x plus shift, channel by channel."""
        shape = (-1, *[1] * (x.dim() - 2))
        return x * self.weight.view(shape) + self.bias.view(shape)


def standardised(weight: Tensor, eps: float = 0.0, gain: float = 1.0) -> Tensor:
    """Standardise each filter: gain/sqrt(fan_in) * (w - mean(w)) / sqrt(var(w) + eps).

    Mean and (biased) variance run over the fan_in weights of one output. The constant 1/sqrt(fan_in)
    keeps the size of the signal, which nothing else in the net would.

    Args:
        weight: (outputs, inputs, ...).
        eps: added to the variance; 0 gives nan for a filter of equal weights.
        gain: a constant factor.

    Returns:
        A tensor of the same shape, invariant under scaling of each filter (with eps = 0).

    Example:
        >>> standardised(torch.tensor([[1.0, 3.0, 5.0, 7.0]]) * 10, gain=math.sqrt(20)).round(decimals=4)
        tensor([[-3., -1.,  1.,  3.]])

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
    """Make a linear layer or a convolution, without bias, its weights standardised if norm says so.

    Args:
        norm: the net's; only "weight-standardised" matters here.
        dims: 0 for features, 1 for signals, 2 for images.
        fan_in: input features or channels.
        width: output features or channels.
        kernel: odd size of the convolution, padded so as to keep the size of the signal.
        stride: of the convolution.
        activation: of the net; sets the constant factor of standardised weights.
        eps: of the standardisation.

    Raises:
        ValueError: there are fewer than two weights to standardise, or the kernel is even.

    """
    if kernel % 2 == 0:
        raise ValueError(f"kernel must be odd, got {kernel}")
    standardise = norm == WEIGHT_STANDARDISED
    if standardise and fan_in * kernel**dims < 2:
        raise ValueError(f"norm={norm!r} must have at least 2 weights to an output, got {fan_in}")
    make = WEIGHTS[dims][standardise]
    shape = (kernel, stride, kernel // 2) if dims else ()
    layer: nn.Module = make(fan_in, width, *shape, bias=False)
    if standardise:
        layer.eps, layer.gain = eps, VARIANCES[activation] ** -0.5  # type: ignore[assignment]
    return layer


def norm_layer(kind: str, channels: int, *, dims: int, affine: bool, eps: float) -> nn.Module:
    """Make a normalization layer by name.

    Args:
        kind: "batch", "group" (up to four groups), "layer", "instance" (not for features), or
            "weight-standardised" and "none", which leave the signal as it is.
        channels: features, or channels of a signal or an image.
        dims: of the input: 0 for (N, C), 1 for (N, C, L), 2 for (N, C, H, W).
        affine: whether it has a gain and a bias, which are trained.
        eps: added to the variance.

    Raises:
        ValueError: the kind is unknown.

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


def smallest_eps(norm: str, dtype: torch.dtype) -> float:
    """The smallest eps torch takes: the smallest normal number for batch and instance norm, 0 otherwise.

    With eps = 0 a sample that is constant everywhere gives nan: 0 divided by 0.

    Raises:
        ValueError: the dtype is neither float32 nor float64.

    """
    if dtype not in SMALLEST_EPS:
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    return SMALLEST_EPS[dtype] if norm in ("batch", "instance") else 0.0


def check_names(head: str, activation: str) -> None:
    """Refuse unknown names."""
    if head not in ("frozen", "etf", "trained"):
        raise ValueError(f"head must be 'frozen', 'etf' or 'trained', got {head!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
