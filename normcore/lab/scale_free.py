"""Make a given model scale-invariant in its trained weights, as far as that goes, and measure it."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from normcore.evaluation import Evaluator, joint_norm, random_like
from normcore.homogeneity import NORM_LAYERS
from normcore.lab.layers import SMALLEST_EPS
from normcore.lab.obstacles import FACTOR, TOLERANCE, Obstacle, obstacles
from normcore.lab.reach import Reach, reach, trained_by_name

BIASED = (nn.Linear, nn.modules.conv._ConvNd)
"""Layers whose bias in front of a norm is set to zero."""

SENSITIVE = 1e-3
"""Least relative change of the output under a random change of the weights: a constant output shows nothing."""

NATURAL = 0.5
"""Root mean square of a vector at the moved point: at 0 or 1e-6, as some start, it would hide."""


@dataclass(frozen=True)
class Change:
    """What was done to a module of the model."""

    module: str
    what: str


@dataclass(frozen=True)
class ScaleFreeReport:
    """What `make_scale_invariant` did and measured; print it.

    `defect` is |f(10 W) - f(W)| / |f(W)| for all trained weights W together, in float64: the larger of
    the values where the model stands and at a point nearby. `sensitivity` is the same for a random
    change of the size of W. `unused` names trained tensors that the forward pass does not use: nothing
    is known about them. `mode` is the one the model was in: "train", "eval" or "mixed".
    """

    changes: tuple[Change, ...]
    defect: float
    sensitivity: float
    obstacles: tuple[Obstacle, ...]
    unused: tuple[str, ...]
    mode: str

    @property
    def holds(self) -> bool:
        """Whether the output was measured to stay within 1e-6, while it does depend on the weights."""
        return self.defect < TOLERANCE and self.sensitivity > SENSITIVE

    def __str__(self) -> str:
        """The verdict, then what was changed, then what stands in the way."""
        verdict = "scale-invariant" if self.holds else "NOT scale-invariant"
        measured = f"ten times the weights: {self.defect:.1e}, random change: {self.sensitivity:.1e}"
        lines = [f"{verdict} ({self.mode} mode; relative change of the output, {measured})"]
        blocks = {
            "changed": [f"{c.module or 'the model itself'}: {c.what}" for c in self.changes],
            "in the way": [str(o) for o in self.obstacles],
            "not used in this pass, so not measured": self.unused,
        }
        for title, entries in blocks.items():
            lines += [f"{title}:", *(f"  {entry}" for entry in entries)] if entries else []
        return "\n".join(lines)


def make_scale_invariant(model: nn.Module, inputs: Tensor, *, seed: int = 0) -> ScaleFreeReport:
    """Apply the recipe for scale invariance to a model, IN PLACE, and measure whether it worked.

    Gains become 1 and shifts 0, frozen; eps becomes the smallest normal float32, as good as 0; biases
    of linear layers and convolutions in front of a norm become 0, frozen; weights with no norm behind
    them (the head) are frozen at their values. Parameters keep their names and shapes; build the
    optimizer afterwards, from those that still require a gradient.

    Then all trained weights of a float64 copy are multiplied by 10, where the model stands and at a
    point nearby where vectors that start at zero do not hide. The copy runs in the mode that the model
    is in: call model.train() first, since BatchNorm in eval mode divides by running statistics and is
    reported as an obstacle. Running statistics and the random state stay as they are.

    Args:
        model: any module that runs as model(inputs); the norms are torch's.
        inputs: a small batch, floating point or not.
        seed: of random draws in the forward pass (dropout), the same at both scales.

    Returns:
        ScaleFreeReport. Where the measurement fails it names what stands in the way; freezing the
        tensors it names, or putting a norm behind them, and another call may help.

    Raises:
        TypeError: inputs is not a tensor.
        ValueError: the model has no trained parameter, or its output is not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
        >>> report = make_scale_invariant(net, torch.randn(16, 4))
        >>> report.holds, [name for name, p in net.named_parameters() if p.requires_grad]
        (True, ['0.weight'])
        >>> for change in report.changes:
        ...     print(f"{change.module}: {change.what}")
        0: bias 0, frozen
        1: gain 1, frozen; shift 0, frozen; eps 1e-05 -> 1.2e-38
        3: weight frozen: no norm behind it; bias frozen: no norm behind it

    Source: the recipe is that of Li, Lyu & Arora (2020), arXiv 2010.02916; the measurement is ours.

    """
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor, got {type(inputs).__name__}")
    if not trained_by_name(model):
        raise ValueError("model must have a trained parameter, got none")
    copied = copy.deepcopy(model).double()
    x = inputs.double() if inputs.is_floating_point() else inputs
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        Evaluator(copied, x, seed)()  # refuses an output that is not finite, before anything is changed
        found = reach(copied, x)
        changes = tuple(_apply_recipe(model, found))
        tuple(_apply_recipe(copied, found))
        here = _measure(copied, x, seed)
        _move(copied, seed)
        there = _measure(copied, x, seed)
        defect, sensitivity = float(torch.maximum(here, there)[0]), float(torch.minimum(here, there)[1])
        unused = tuple(name for name in trained_by_name(model) if name not in found.output + found.norms)
        report = ScaleFreeReport(changes, defect, sensitivity, (), unused, _mode(model))
        return report if report.holds else replace(report, obstacles=_obstacles(copied, x, sensitivity, seed))


def _mode(model: nn.Module) -> str:
    """The mode of all modules."""
    modes = {module.training for module in model.modules()}
    return "mixed" if len(modes) > 1 else "train" if True in modes else "eval"


def _measure(model: nn.Module, inputs: Tensor, seed: int) -> Tensor:
    """The relative change of the output at ten times the trained weights, and under a random change."""
    evaluate, weights = Evaluator(model, inputs, seed), list(trained_by_name(model).values())
    draws = random_like(weights, joint_norm(weights), seed)
    moved = (
        [FACTOR * w.detach() for w in weights],
        [w.detach() + d for w, d in zip(weights, draws, strict=True)],
    )
    try:
        base = evaluate()
        changes = [(evaluate.at(weights, values) - base).norm() / base.norm() for values in moved]
    except ValueError:  # not finite
        return torch.full((2,), torch.nan)
    return torch.stack(changes)


@torch.no_grad()
def _move(model: nn.Module, seed: int) -> None:
    """Move the trained weights by a fifth, and give vectors and zeros, which might hide, a natural size."""
    for i, p in enumerate(trained_by_name(model).values()):
        rms, vector = float(p.square().mean().sqrt()), p.numel() == max(p.shape, default=1)
        hides = rms == 0.0 or (vector and rms < NATURAL)
        size = NATURAL if hides else 0.2 * rms
        draw = random_like([p], size * p.numel() ** 0.5, seed + i)[0]
        p.copy_(draw if hides else p + draw)


def _obstacles(model: nn.Module, inputs: Tensor, sensitivity: float, seed: int) -> tuple[Obstacle, ...]:
    """What stands in the way of a model that was measured not to be invariant; the model is used up."""
    if not trained_by_name(model):
        return (Obstacle("", "no trained weight is left: there is no norm behind any of them"),)
    found = obstacles(model, inputs, seed)
    for name, p in model.named_parameters():
        if p.dim() > 1 and not p.requires_grad and not p.any():
            found.append(Obstacle(name, "is frozen at zero and hides what comes before: draw it first"))
    if not sensitivity > SENSITIVE:
        found.append(Obstacle("", "the output does not depend on the trained weights: nothing is shown"))
    return tuple(found or [Obstacle("", "the output changes, but no module was found to cause it")])


def _apply_recipe(model: nn.Module, found: Reach) -> Iterator[Change]:
    """Take affine part and eps out of the norms, and the biases before them; freeze the head."""
    head = set(found.output) - set(found.norms) if found.norms else set()
    for name, module in model.named_modules():
        if isinstance(module, NORM_LAYERS):
            what = _bare(module)
        else:
            own = dict(module.named_parameters(recurse=False))
            full = {key: f"{name}.{key}" if name else key for key in own if own[key].requires_grad}
            what = [f"{key} frozen: no norm behind it" for key in full if full[key] in head]
            for key in full:
                own[key].requires_grad_(full[key] not in head)
            if isinstance(module, BIASED) and full.get("bias") in found.norms:
                _freeze_at(own["bias"], 0.0)
                what.append("bias 0, frozen")
        yield from [Change(name, "; ".join(what))] if what else []


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
    """Fill a parameter and stop training it."""
    with torch.no_grad():
        p.fill_(value)
    p.requires_grad_(False)
