"""The degree of homogeneity of what enters each normalization layer, measured.

f is homogeneous of degree k in some weights when f(c w) = c^k f(w). A norm layer removes any degree; what matters is that its input has one.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normcore.evaluation import untouched

NORM_LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)

TOLERANCE = 1e-2
"""How far log2 of the ratio may lie from an integer: half-precision rounding moves it by 1e-3, a mixture of degrees by 0.1 and more."""

NO_EPS = 1e-30
"""Stands in for eps = 0 while degrees are measured (BatchNorm refuses 0 in training): eps itself must not blur them."""


def norm_input_degrees(model: nn.Module, groups: Sequence[Sequence[Tensor]], inputs: tuple[Any, dict[str, Any]]) -> dict[str, list[int]]:
    """Measure the degree of homogeneity of every norm layer's input in each group of weights.

    Doubles the weights of a group, which is exact in binary floats, and compares the norm of each layer's input: degree = log2 of the ratio. The model is run in train mode,
    with eps as good as 0, and left as it was.

    Args:
        model: any module with torch's normalization layers.
        groups: lists of the model's parameters.
        inputs: (args, kwargs) of the model's forward.

    Returns:
        Layer name -> one degree for each group. Layers that the forward pass does not reach are left out.

    Raises:
        ValueError: an input mixes parts that scale and parts that do not.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4)).double()
        >>> norm_input_degrees(net, [[net[0].weight], [net[2].weight, net[2].bias]], ((torch.randn(5, 3).double(),), {}))
        {'1': [1, 0], '3': [0, 1]}

    Source: the degrees of Li & Arora (2020), arXiv 1910.07454, appendix C; the measurement is this project's.
    """
    with untouched(model, train=True), _without_eps(model):
        base = _input_norms(model, inputs)
        degrees: dict[str, list[int]] = {name: [] for name in base}
        for group in groups:
            with torch.no_grad():
                torch._foreach_mul_(list(group), 2.0)
            for name, norm in _input_norms(model, inputs).items():
                degrees[name].append(_degree(name, norm, base[name]))
            with torch.no_grad():
                torch._foreach_mul_(list(group), 0.5)
    return degrees


@contextmanager
def _without_eps(model: nn.Module) -> Iterator[None]:
    """Within this context every norm layer's eps is as good as 0."""
    layers = [layer for layer in model.modules() if isinstance(layer, NORM_LAYERS)]
    eps = [layer.eps for layer in layers]
    try:
        for layer in layers:
            layer.eps = NO_EPS
        yield
    finally:
        for layer, value in zip(layers, eps, strict=True):
            layer.eps = value


def _degree(name: str, doubled: float, base: float) -> int:
    """The integer log2 of a ratio of norms."""
    if base == 0.0 or doubled == 0.0:
        return 0  # nothing reaches the layer, at any scale
    exponent = math.log2(doubled / base)
    if abs(exponent - round(exponent)) > TOLERANCE:
        raise ValueError(
            f"the input of norm layer {name!r} must be homogeneous in the group's weights, got degree {exponent:.3f}: it mixes parts that scale and "
            "parts that do not (a bias, or a shortcut, outside the group); tag them together or not at all"
        )
    return round(exponent)


@torch.no_grad()
def _input_norms(model: nn.Module, inputs: tuple[Any, dict[str, Any]]) -> dict[str, float]:
    """The norm of each norm layer's input in one forward pass, over all its calls."""
    squares: dict[str, float] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, NORM_LAYERS):

            def record(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                squares[name] = squares.get(name, 0.0) + float(args[0].detach().double().pow(2).sum())

            handles.append(layer.register_forward_pre_hook(record))
    try:
        torch.manual_seed(0)
        model.forward(*inputs[0], **inputs[1])
    finally:
        for handle in handles:
            handle.remove()
    return {name: math.sqrt(square) for name, square in squares.items()}
