"""Make a given model scale-invariant in its trained weights, as far as that goes, and measure it."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normcore.checks import require_module, require_type
from normcore.invariance.degrees import NORM_LAYERS
from normcore.invariance.probing import Evaluator, flat_output, tensors_in, trainable, untouched
from normcore.invariance.symmetries import reverse_rows
from normcore.lab.nets.layers import SMALLEST_EPS

BIASED = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers whose bias in front of a norm is set to zero."""

TOLERANCE = 1e-6
"""A defect in float64, with every eps as good as 0, is rounding below this."""


@dataclass(frozen=True)
class ScaleFreeReport:
    """What `make_scale_invariant` did and measured; print it.

    Attributes:
        changes: (module, what was done to it).
        defect: of all trained weights together, in float64, as in `normcore.scale_invariance`: the larger of the
            values where the model stands and at a point nearby; nan where the output does not depend on them.
        in_the_way: trained tensors that change the output when they alone are scaled.

    """

    changes: tuple[tuple[str, str], ...]
    defect: float
    in_the_way: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the trained weights were measured to be scale-invariant together."""
        return self.defect < TOLERANCE

    def __str__(self) -> str:
        verdict = "scale-invariant" if self.holds else "NOT scale-invariant"
        lines = [f"{verdict} (defect of all trained weights: {self.defect:.1e})"]
        lines += [f"  {module or 'the model itself'}: {what}" for module, what in self.changes]
        return "\n".join(lines + [f"in the way: {name}" for name in self.in_the_way])


def make_scale_invariant(model: nn.Module, inputs: Tensor, *, seed: int = 0) -> ScaleFreeReport:
    """Apply the recipe for scale invariance to a model, IN PLACE, and measure whether it worked.

    Gains become 1 and shifts 0, frozen; eps becomes the smallest normal float32, as good as 0; biases of linear layers
    and convolutions in front of a norm become 0, frozen; weights with no norm behind them (the head) are frozen at
    their values. Parameters keep their names and shapes; build the optimizer afterwards, from those that still
    require a gradient. The measurement runs in the mode that the model is in, on a copy in float64.

    Args:
        model: any module that runs as model(inputs); the norms are torch's.
        inputs: a small batch, floating point or not.
        seed: of random draws.

    Returns:
        ScaleFreeReport. Where it does not hold, freezing the tensors it names, or putting a norm behind them, may help.

    Raises:
        TypeError: inputs is not a tensor.
        ValueError: the model has no trained parameter, or its output is not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
        >>> report = make_scale_invariant(net, torch.randn(16, 4))
        >>> report.holds, [name for name, p in net.named_parameters() if p.requires_grad]
        (True, ['0.weight'])
        >>> for module, what in report.changes:
        ...     print(f"{module}: {what}")
        0: bias 0, frozen
        1: gain 1, frozen; shift 0, frozen; eps 1e-05 -> 1.2e-38
        3: weight frozen: no norm behind it; bias frozen: no norm behind it

    Source: the recipe is that of Li, Lyu & Arora (2020), arXiv 2010.02916; the measurement is ours.

    """
    require_module(model)
    require_type("inputs", inputs, Tensor, "a tensor")
    if not trainable(model):
        raise ValueError("model must have a trained parameter, got none")
    copied = copy.deepcopy(model).double()
    x = inputs.double() if inputs.is_floating_point() else inputs
    with untouched(model):
        Evaluator(copied, x, seed)()  # refuses an output that is not finite, before anything is changed
        past, into = _arrivals(copied, x)
    changes = tuple(_apply_recipe(model, past, into))
    tuple(_apply_recipe(copied, past, into))
    with untouched(copied):
        return ScaleFreeReport(changes, *_measure(copied, x, seed))


def _measure(model: nn.Module, inputs: Tensor, seed: int) -> tuple[float, tuple[str, ...]]:
    """The defect of all trained weights at two points, and the tensors that are not invariant alone."""
    names, evaluate = list(trainable(model)), Evaluator(model, inputs, seed)
    if not names:
        return math.nan, ()

    def defects(*groups: list[str]) -> list[float]:
        """The defect of each group; nan where its effect is rounding."""
        rows, outputs = reverse_rows(evaluate, names, seed)
        floor = 1e3 * evaluate.eps * float(flat_output(outputs).norm())
        return [rows.defect(group) if rows.effect(group) > floor else math.nan for group in groups]

    (here,) = defects(names)
    with evaluate.moved(evaluate.nearby(names, seed)[0]):
        there, *alone = defects(names, *([name] for name in names))
    worst = math.nan if math.isnan(there) else max(there, 0.0 if math.isnan(here) else here)
    return worst, tuple(name for name, value in zip(names, alone, strict=True) if value > TOLERANCE)


def _arrivals(model: nn.Module, inputs: Any) -> tuple[set[str], set[str]]:
    """Names of the trained tensors that arrive at the output past every norm, and at a norm past the others."""
    into: list[Tensor] = []

    def cut(module: nn.Module, args: Any, output: Any) -> Any:
        into.extend(tensors_in(args))
        return output.detach()

    with ExitStack() as hooks, torch.enable_grad():
        for norm in (m for m in model.modules() if isinstance(m, NORM_LAYERS)):
            hooks.enter_context(norm.register_forward_hook(cut))
        output = tensors_in(model(inputs))
    trained = trainable(model)
    return _sources(output, trained), _sources(into, trained)


def _sources(values: Sequence[Tensor], trained: dict[str, Tensor]) -> set[str]:
    sums = [value.sum() for value in values if value.requires_grad]
    if not sums:
        return set()
    grads = torch.autograd.grad(sums, list(trained.values()), allow_unused=True, retain_graph=True)
    return {name for name, grad in zip(trained, grads, strict=True) if grad is not None}


def _apply_recipe(model: nn.Module, past: set[str], into: set[str]) -> Iterator[tuple[str, str]]:
    """Take affine part and eps out of the norms, and the biases before them; freeze the head."""
    head = past - into if into else set()
    for name, module in model.named_modules():
        if isinstance(module, NORM_LAYERS):
            what = _bare(module)
        else:
            own = dict(module.named_parameters(recurse=False))
            full = {key: f"{name}.{key}" if name else key for key in own if own[key].requires_grad}
            what = [f"{key} frozen: no norm behind it" for key in full if full[key] in head]
            for key in full:
                own[key].requires_grad_(full[key] not in head)
            if isinstance(module, BIASED) and full.get("bias") in into:
                _freeze_at(own["bias"], 0.0)
                what.append("bias 0, frozen")
        yield from [(name, "; ".join(what))] if what else []


def _bare(norm: Any) -> list[str]:
    """Give a norm layer gain 1, shift 0 and the smallest eps; says what was changed."""
    what, eps = [], SMALLEST_EPS[torch.float32]
    for key, value, word in (("weight", 1.0, "gain 1, frozen"), ("bias", 0.0, "shift 0, frozen")):
        p = getattr(norm, key, None)
        if p is not None and (p.requires_grad or bool((p != value).any())):
            _freeze_at(p, value)
            what.append(word)
    if norm.eps is None or norm.eps > eps:
        what.append(f"eps {norm.eps} -> {eps:.1e}")
        norm.eps = eps
    return what


def _freeze_at(p: Tensor, value: float) -> None:
    with torch.no_grad():
        p.fill_(value)
    p.requires_grad_(False)
