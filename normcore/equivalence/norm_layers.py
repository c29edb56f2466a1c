"""Normalization layers that follow the scale of what they normalize, and a forward pass that shows whether they do.

A layer that computes (z - mean) / sqrt(var + eps) gives the same output at s*z when eps becomes s^2 eps, and,
in eval mode, when its running mean and variance become s mean and s^2 var. Layers are known by what they have, and
proved by trial (`co_scaling`): any module with an eps or running statistics may be one.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normcore.invariance.probing import tensors_in

EPS = re.compile(r"(^|_)eps(ilon)?$")
STATISTICS = {"running_mean": 1, "running_var": 2}
"""What is co-scaled: attributes of such a name, and tensors, with their degree in the layer's input."""

ORDINARY = "_ordinary_eps"
"""Where a co-scaled layer keeps the eps it was made with, so that a copy of the model knows it too."""

INTEGER = 1e-4
"""How far a measured degree may lie from an integer; only a mixture of scaled and unscaled parts moves it."""


class NormLayer:
    """A module with an eps or running statistics, and the scale at which they are.

    `power` is the degree of its eps: 2 beside a variance, 1 beside a standard deviation. `degrees` are those of its
    input in the weights of each group, as far as they have been measured.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        named = {key: value for key, value in vars(module).items() if EPS.search(key) and key != ORDINARY}
        self.attribute = next((a for a, v in named.items() if ORDINARY in vars(module) or _is_eps(v)), None)
        self.power, self.scale = 2, 1.0
        self.degrees: dict[int, int] = {}
        self.rounding = torch.finfo(torch.float32).eps

    @property
    def eps(self) -> float | None:
        """The eps that it has now; None where it has none, or takes RMSNorm's default."""
        value = None if self.attribute is None else getattr(self.module, self.attribute)
        return None if value is None else float(value)

    def multiply_eps(self, ratio: float) -> None:
        """Bring the eps to an input that is ratio times as large, for a time."""
        if self.attribute is not None:
            eps = self.rounding if self.eps is None else self.eps
            setattr(self.module, self.attribute, eps * ratio**self.power)

    def set_eps(self, scale: float) -> None:
        """Write the eps of this scale into the module; a scale of 1 gives back what was there."""
        if self.attribute is None:
            return
        eps = vars(self.module).setdefault(ORDINARY, self.eps)
        setattr(self.module, self.attribute, eps)
        if scale == 1.0:
            del vars(self.module)[ORDINARY]
        else:
            self.multiply_eps(scale)

    def statistics(self) -> list[tuple[Tensor, int]]:
        """The running statistics, with their degrees."""
        found = [(getattr(self.module, name, None), degree) for name, degree in STATISTICS.items()]
        return [(values, degree) for values, degree in found if isinstance(values, Tensor)]

    @torch.no_grad()
    def scale_statistics(self, ratio: float) -> None:
        """Multiply the running mean by the ratio and the running variance by its square, if it keeps any."""
        for values, degree in self.statistics():
            values.mul_(ratio**degree)


def _is_eps(value: Any) -> bool:
    """Whether this may be an eps: a small number, or torch's None for the rounding unit."""
    return value is None or (isinstance(value, float) and 0.0 <= value < 1.0)


def norm_layers(model: nn.Module) -> list[NormLayer]:
    """The modules that may have to be co-scaled; of nested ones the innermost."""
    found = [NormLayer(name, module) for name, module in model.named_modules()]
    found = [layer for layer in found if layer.attribute is not None or layer.statistics()]
    modules = {layer.module for layer in found}
    return [layer for layer in found if modules.isdisjoint(set(layer.module.modules()) - {layer.module})]


class Run:
    """One forward pass of a model: the norms of what goes into its layers and out of its modules; beside a base, with a
    group halved, it co-scales the layers.
    """

    def __init__(self, base: "Run | None" = None) -> None:
        self.base = base
        self.inputs: dict[str, list[float]] = defaultdict(list)
        self.outputs: dict[str, list[float]] = defaultdict(list)
        self.degrees: dict[NormLayer, int] = {}
        self.eps: dict[NormLayer, float | None] = {}
        self.mixed = ""
        self.tensors: dict[str, Tensor] = {}
        """The model's outputs, and its buffers afterwards."""

    def before(self, layer: NormLayer, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A layer is called: note its input, or bring it to the scale that its input shows."""
        self.inputs[layer.name].append(norm := input_norm(args, kwargs))
        if self.base is None:
            dtypes = [torch.promote_types(z.dtype, torch.float32) for z in tensors_in((args, kwargs))]
            # half precision is computed in float32
            layer.rounding = torch.finfo(dtypes[0]).eps if dtypes else 0.0
            return
        ratio = 0.5 ** self._degree(layer, norm, self.base.inputs[layer.name])
        self.eps[layer] = layer.eps
        layer.scale_statistics(ratio)
        layer.multiply_eps(ratio)

    def _degree(self, layer: NormLayer, norm: float, base: list[float]) -> int:
        """The degree of this call's input: an integer, and that of the other calls."""
        call = len(self.inputs[layer.name]) - 1
        if call >= len(base):
            raise ValueError(
                f"norm layer {layer.name!r} must be called equally often at every scale of the weights"
            )
        if base[call] == norm == 0.0:
            return 0
        exponent = math.log2(base[call] / norm) if base[call] > 0.0 < norm else 0.5
        if abs(exponent - round(exponent)) > INTEGER:
            what = f"the input of norm layer {layer.name!r} mixes scaled and unscaled parts"
            self.mixed = self.mixed or what
            return 0
        if self.degrees.setdefault(layer, round(exponent)) != round(exponent):
            raise ValueError(
                f"the inputs of norm layer {layer.name!r} must have one degree in a group's weights at every call, got "
                f"{self.degrees[layer]} and {round(exponent)}: give each call a layer of its own"
            )
        return round(exponent)

    def after(
        self, name: str, layer: NormLayer | None, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> Any:
        """A module ends: note its output, and bring a layer back."""
        norm = _output_norm(output)
        if layer is not None and self.base is not None:
            layer.scale_statistics(2.0 ** self.degrees.get(layer, 0))
            expected = self.base.outputs[name][len(self.outputs[name])]
            if norm != expected and self.eps[layer] and not layer.statistics():
                output = self._otherwise(layer, args, kwargs, output, expected)
                norm = _output_norm(output)
            self.give_back()
        self.outputs[name].append(norm)
        return output

    def _otherwise(self, layer: NormLayer, args: Any, kwargs: Any, output: Any, expected: float) -> Any:
        """The output, or a nearer one: eps may stand beside a root, or with weights that the layer standardises."""
        degree, power = self.degrees.get(layer, 0), layer.power
        tried = [(1, 0.5**degree)] if degree else [(2, 0.5), (1, 0.5)]
        for layer.power, ratio in tried:
            self.give_back()
            layer.multiply_eps(ratio)
            again = layer.module.forward(*args, **kwargs)
            if abs(_output_norm(again) - expected) < 0.1 * abs(_output_norm(output) - expected):
                self.degrees[layer] = degree or 1
                return again
        layer.power = power
        return output

    def give_back(self) -> None:
        """Let layers have the eps of before."""
        for layer, eps in self.eps.items():
            if layer.attribute is not None:
                setattr(layer.module, layer.attribute, eps)

    def gap(self, other: "Run") -> tuple[float, str]:
        """The largest relative difference of outputs or buffers, and where it is."""
        worst = 0.0, ""
        if self.tensors.keys() != other.tensors.keys():
            return math.inf, "the number of outputs"
        for name, a in self.tensors.items():
            b = other.tensors[name]
            if a.shape != b.shape:
                return math.inf, name
            differ = (a != b) & ~(a.isnan() & b.isnan())
            if differ.any():
                size = float(a[a.isfinite()].double().norm())
                gap = float((a[differ].double() - b[differ].double()).norm()) / max(size, 1e-300)
                worst = max(worst, (gap if math.isfinite(gap) else math.inf, name))
        return worst

    def first_astray(self, titles: Mapping[str, str]) -> str:
        """The first module whose output is not multiplied by a power of two, in words."""
        assert self.base is not None
        for name, norms in self.base.outputs.items():
            pairs = zip(norms, self.outputs[name], strict=False)
            exponents = [math.log2(a / b) for a, b in pairs if a > 0.0 < b]
            if any(abs(e - round(e)) > 1e-12 for e in exponents):
                return f"the first module whose output does not follow is {titles[name]}"
        return "every module's output follows, so that no normalization removes the scale"


def input_norm(args: Any, kwargs: Any) -> float:
    """The norm of the first tensor that goes into a module."""
    return next(map(_norm, tensors_in((args, kwargs))), 0.0)


def _output_norm(output: Any) -> float:
    return math.hypot(*map(_norm, tensors_in(output)))


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
