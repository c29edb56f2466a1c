"""The degree of homogeneity of what enters each normalization layer, measured.

f is homogeneous of degree k in some weights when f(c w) = c^k f(w). A norm layer removes any
degree; what matters is that its input has one.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from normcore.checks import require_module, require_type
from normcore.invariance.probing import Forward, call, untouched

NORM_LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)

TOLERANCE = 1e-4
"""How far log2 of the ratio may lie from an integer. Doubling is exact in binary floats, in half precision too,
so that only a mixture moves it; a small bias outside the group by as little as 1e-2."""

NO_EPS = 1e-30
"""Stands in for eps = 0 while degrees are measured (BatchNorm refuses 0 in training): eps itself
must not blur them."""

EPS_NAMES = ("eps", "epsilon", "variance_epsilon")
"""What layers that are not torch's call theirs; above LARGEST_EPS such a number is something else (of Sinkhorn's, say)."""

LARGEST_EPS = 1e-2


def norm_input_degrees(
    model: nn.Module, groups: Sequence[Sequence[Tensor]], inputs: tuple[Any, ...]
) -> dict[str, list[int]]:
    """Measure the degree of homogeneity of every norm layer's input in each group of weights.

    Doubles the weights of a group, which is exact in binary floats, and compares the norm of each
    layer's input: degree = log2 of the ratio, the same at every call of the layer. The model is run
    in train mode, with eps as good as 0, and left as it was.

    Args:
        model: any module with torch's normalization layers.
        groups: lists of the model's parameters.
        inputs: the pair (args, kwargs) of the model's forward (a tuple and a dict), or args alone.

    Returns:
        Layer name -> one degree for each group. Layers that the forward pass does not reach are
        left out.

    Raises:
        ValueError: a group holds a tensor twice, or one that is no parameter of the model; an input mixes parts that
            scale and parts that do not; a layer that is called several times sees several degrees.

    Example:
        >>> layers = nn.Linear(3, 4, bias=False), nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4)
        >>> net = nn.Sequential(*layers).double()
        >>> groups = [[net[0].weight], [net[2].weight, net[2].bias]]
        >>> norm_input_degrees(net, groups, ((torch.randn(5, 3).double(),), {}))
        {'1': [1, 0], '3': [0, 1]}

    Source: the degrees of Li & Arora (2020), arXiv 1910.07454, appendix C; the measurement is this
    project's.

    """
    require_module(model)
    require_type("inputs", inputs, tuple | list, "the arguments of the model's forward")
    require_type("groups", groups, Sequence, "a list of lists of parameters")
    for group in groups:
        require_type("groups", group, Sequence, "a list of lists of parameters")
        for parameter in group:
            require_type("groups", parameter, Tensor, "a list of lists of parameters")
    pair = len(inputs) == 2 and isinstance(inputs[0], tuple | list) and isinstance(inputs[1], dict)
    call = inputs if pair else (inputs, {})
    for group in groups:
        if len({*group}) < len(group) or not {*group} <= {*model.parameters()}:
            raise ValueError(
                "groups must hold parameters of the model, each once, got another tensor or one twice"
            )
    with untouched(model, train=True), without_eps(model), torch.no_grad():
        base = _input_norms(model, call)
        degrees: dict[str, list[int]] = {name: [] for name in base}
        for group in groups:
            for p in group:
                p.mul_(2.0)
            doubled = _input_norms(model, call)
            for p in group:
                p.mul_(0.5)
            for name in base:
                degrees[name].append(_degree(name, doubled.get(name, []), base[name]))
    return degrees


@contextmanager
def without_eps(model: nn.Module) -> Iterator[None]:
    """Within this context every norm layer's eps is as good as 0, and that of other modules which have one."""
    kept = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if name in EPS_NAMES and _is_eps(module, value)
    ]
    try:
        for module, name, _ in kept:
            setattr(module, name, NO_EPS)
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def _is_eps(module: nn.Module, value: Any) -> bool:
    """Whether an attribute named so is the small constant of a norm; torch's RMSNorm calls its default None."""
    if isinstance(module, NORM_LAYERS):
        return value is None or isinstance(value, float)
    return isinstance(value, float) and 0.0 < value <= LARGEST_EPS


NORM_FUNCTIONS = {
    getattr(functional, name): inspect.signature(getattr(functional, name))
    for name in ("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm")
}


class _LiteralsWithoutEps(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in NORM_FUNCTIONS:
            return func(*args, **(kwargs or {}))
        bound = NORM_FUNCTIONS[func].bind(*args, **(kwargs or {}))
        bound.arguments["eps"] = NO_EPS
        return func(*bound.args, **bound.kwargs)


def literals_without_eps(forward: Forward | None) -> Forward:
    """The forward pass in which torch's norm functions take eps as good as 0, where a model calls them with a number."""
    require_type("forward", forward, Callable | None, "a function or None")

    def bare(model: nn.Module, x: Any) -> Any:
        with _LiteralsWithoutEps():
            return (forward or call)(model, x)

    return bare


def _degree(name: str, doubled: Sequence[float], base: Sequence[float]) -> int:
    """The degree that all calls of a layer agree on."""
    if len(doubled) != len(base):
        raise ValueError(
            f"norm layer {name!r} must be called equally often at every scale of the weights, got "
            f"{len(base)} and {len(doubled)} calls"
        )
    found = {_call_degree(name, *norms) for norms in zip(doubled, base, strict=True)} - {None}
    if len(found) > 1:
        raise ValueError(
            f"the inputs of norm layer {name!r} must have one degree in the group's weights at "
            f"every call, got {sorted(d for d in found if d is not None)}: give each call a layer "
            "of its own, or leave the parameters that only some calls see out of the group"
        )
    return found.pop() or 0 if found else 0


def _call_degree(name: str, doubled: float, base: float) -> int | None:
    """The integer log2 of a ratio of norms; None where nothing reaches the layer at any scale."""
    if base == 0.0 and doubled == 0.0:
        return None
    exponent = math.log2(doubled / base) if base > 0.0 and doubled > 0.0 else math.nan
    if not abs(exponent - round(exponent) if math.isfinite(exponent) else math.nan) <= TOLERANCE:
        raise ValueError(
            f"the input of norm layer {name!r} must be homogeneous in the group's weights, got "
            f"degree {exponent:.3f}: its input mixes scaled and unscaled parts (a bias, or a "
            "shortcut, outside the group); leave that parameter out of the group, or tag all parts"
        )
    return round(exponent)


def _input_norms(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, list[float]]:
    norms: dict[str, list[float]] = {}

    def record(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        z = args[0] if args else kwargs["input"]
        norms.setdefault(name, []).append(float(z.detach().double().norm()))

    with ExitStack() as hooks:
        for name, layer in model.named_modules():
            if isinstance(layer, NORM_LAYERS):
                hook = partial(record, name)
                hooks.enter_context(layer.register_forward_pre_hook(hook, with_kwargs=True))
        torch.manual_seed(0)
        model.forward(*inputs[0], **inputs[1])
    return norms
