"""Normalization layers that follow the scale of what they normalize.

A layer that computes (z - mean) / sqrt(var + eps) gives the same output at s*z when eps becomes s^2 eps, and,
in eval mode, when its running mean and variance become s mean and s^2 var. Layers are known by what they have, and
proved by trial (`co_scaling`): any module with an eps or running statistics may be one.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

EPS = re.compile(r"(^|_)eps(ilon)?$")
STATISTICS = {"running_mean": 1, "running_var": 2}
"""What is co-scaled: attributes of such a name, and tensors, with their degree in the layer's input."""

ORDINARY = "_ordinary_eps"
"""Where a co-scaled layer keeps the eps it was made with, so that a copy of the model knows it too."""


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
    def follows(self) -> bool:
        """Whether its input has a scale."""
        return any(self.degrees.values())

    @property
    def eps(self) -> float | None:
        """The eps that it has now; None where it has none, or takes RMSNorm's default."""
        value = None if self.attribute is None else getattr(self.module, self.attribute)
        return None if value is None else float(value)

    def multiply_eps(self, ratio: float) -> None:
        """Bring the eps to an input that is ratio times as large, for a time."""
        if self.attribute is not None:
            setattr(self.module, self.attribute, (self.eps or self.default()) * ratio**self.power)

    def default(self) -> float:
        """What stands for an eps that is None."""
        return self.rounding if self.eps is None else 0.0

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
