"""Keep normalization layers exact while the weights that feed them are rescaled.

A layer that computes (z - mean) / sqrt(var + eps) gives the same output at s*z when eps becomes s^2 eps, and,
in eval mode, when its running mean and variance become s mean and s^2 var. Here s is the product over the
rescaled groups of (1/x_g)^{d_g}, with d_g the degree of homogeneity of the layer's input in the weights of
group g, which is measured.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normcore.equivalence.group_gauge import GroupGauge
from normcore.invariance.degrees import norm_input_degrees


class Registered(Sequence[Tensor]):
    """Some weights as the model has them at the moment: FSDP registers now the shards, now the whole weights."""

    def __init__(self, model: nn.Module, params: Sequence[Tensor], named: Mapping[Tensor, str]) -> None:
        """Hold the weights that the optimizer has, and the names of those that are the model's."""
        self.model, self.params, self.named = model, params, named

    def __len__(self) -> int:
        return len(self.params)

    def __getitem__(self, index: Any) -> Any:
        """Look one up, by its name."""
        param = self.params[index]
        return self.model.get_parameter(self.named[param]) if param in self.named else param


class NormScaling:
    """The norm layers of a model, their original eps, and the degrees of their inputs in each group's weights.

    The degrees are measured on the inputs of the model's first forward pass in train mode (extra passes, no
    gradients), or taken from a saved state.
    """

    def __init__(self, model: nn.Module, gauges: Sequence[GroupGauge]) -> None:
        """Wait for the model's first forward pass in train mode."""
        self.model, self.gauges = model, list(gauges)
        self.named: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        self.degrees: dict[str, list[int]] | None = None
        self.eps: dict[str, float | None] = {}
        self._scales: dict[str, float] = {}
        self._handle = model.register_forward_pre_hook(self._measure, with_kwargs=True)

    def _measure(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Measure the degrees once, before the first forward pass in train mode.

        Not in one in which other tensors stand in for the parameters, as when a curvature is read.
        """
        if not model.training or not all(isinstance(p, nn.Parameter) for p in model.parameters()):
            return
        self.close()
        if self.degrees is None:
            groups = [Registered(model, gauge.group["params"], self.named) for gauge in self.gauges]
            self.adopt(norm_input_degrees(model, groups, (args, kwargs)))
            self.update()

    def adopt(self, degrees: Mapping[str, list[int]], eps: Mapping[str, float | None] | None = None) -> None:
        """Take the degrees of the layers that the groups reach, at scale 1."""
        self.close()
        self.degrees = {name: list(row) for name, row in degrees.items() if any(row)}
        self.eps = {name: self._layer_eps(name) for name in self.degrees} if eps is None else dict(eps)
        self._scales = dict.fromkeys(self.degrees, 1.0)

    def _layer_eps(self, name: str) -> float | None:
        """The named layer's eps as it is now."""
        eps: Any = self.model.get_submodule(name).eps
        return None if eps is None else float(eps)

    def resume(self, degrees: Mapping[str, list[int]], eps: Mapping[str, float | None]) -> None:
        """Adopt a saved state whose running statistics are already at the gauges' scales: only eps is set."""
        self.adopt(degrees, eps)
        for name in degrees:
            self._move_eps(name, self._target(name))

    @torch.no_grad()
    def update(self) -> None:
        """Move every layer to the present scales of the gauges."""
        for name in self.degrees or {}:
            target = self._target(name)
            ratio = target / self._scales[name]
            if ratio != 1.0:
                scale_statistics(self.model.get_submodule(name), ratio)
                self._move_eps(name, target)

    def _target(self, name: str) -> float:
        """The named layer's scale: the factor of its input relative to the run with weight decay."""
        degrees = (self.degrees or {})[name]
        return math.prod(gauge.x**-d for gauge, d in zip(self.gauges, degrees, strict=True))

    def _move_eps(self, name: str, scale: float) -> None:
        """Write the co-scaled eps into the layer; a scale of 1 gives back what was there."""
        layer, eps = self.model.get_submodule(name), self.eps[name]
        self._scales[name] = scale
        if eps is None:  # RMSNorm's default: the eps of its input's dtype, taken to be that of the model
            eps = torch.finfo(next(self.model.parameters()).dtype).eps
        layer.eps = self.eps[name] if scale == 1.0 else eps * scale**2  # type: ignore[assignment]

    def close(self) -> None:
        """Stop waiting."""
        self._handle.remove()


def scale_statistics(layer: nn.Module, ratio: float) -> None:
    """Multiply a layer's running mean by ratio and its running variance by ratio^2, if it keeps any."""
    mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    if mean is not None:
        mean.mul_(ratio)
    if variance is not None:
        variance.mul_(ratio**2)
