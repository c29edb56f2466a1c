"""Which parameters are scale-invariant: yes, no or undetermined, with the measured defect.

W is scale-invariant when multiplying it by any c > 0 leaves the model's function as it is. The
defect compares doubling W, exact in binary floats, with a random move of the same size:
|f(2W) - f(W)| / |f(W + D) - f(W)|, |D| = |W|. It is 0 for an invariant tensor, of order 1 for any
other, whatever the shapes, and 1e-5 to 1e-3 when the eps of a norm layer blurs it. The models run
in train mode, since batch statistics are what makes a weight invariant.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normcore.evaluation import Evaluator, joint_norm, random_like, untouched
from normcore.joint_groups import candidate_groups

YES = 1e-2
"""A defect below this is invariance: norm layers with eps = 1e-5 give up to about 1e-3."""

NO = 5e-2
"""A defect above this is none; between the two the verdict is undetermined."""

NATURAL = 0.5
"""Root mean square that shifts and gains have at the moved point at least: one much smaller than
the activations it is added to would hide what depends on it, as a zero does."""


@dataclass(frozen=True)
class TensorVerdict:
    """The verdict on one tensor.

    Its defect (0 = invariant) is NaN where a random move of the tensor does nothing either, its
    cosine of gradient and weight is NaN where there is no gradient.
    """

    verdict: str
    defect: float
    cosine: float


@dataclass(frozen=True)
class JointVerdict:
    """The verdict on several tensors scaled by a common factor."""

    names: tuple[str, ...]
    verdict: str
    defect: float


@dataclass(frozen=True)
class InvarianceReport:
    """What `scale_invariance` found: `tensors` by name, `groups` invariant only together."""

    tensors: Mapping[str, TensorVerdict]
    groups: Mapping[str, JointVerdict]

    @property
    def invariant(self) -> list[str]:
        """Names of the tensors that are scale-invariant alone."""
        return [name for name, verdict in self.tensors.items() if verdict.verdict == "yes"]

    def __str__(self) -> str:
        """A table."""
        width = max(map(len, [*self.tensors, *self.groups, "parameter"]))
        lines = [f"{'parameter':{width}}  invariant     defect    cosine"]
        for name, v in self.tensors.items():
            lines.append(f"{name:{width}}  {v.verdict:12} {v.defect:8.1e}  {v.cosine:8.1e}")
        for name, g in self.groups.items():
            members = ", ".join(g.names)
            lines.append(f"{name:{width}}  {g.verdict:12} {g.defect:8.1e}  jointly: {members}")
        return "\n".join(lines)


def scale_invariance(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batch: tuple[Any, Any],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> InvarianceReport:
    """Test every trainable tensor, and groups of tensors, for scale invariance.

    A verdict of yes must hold for other values of the other parameters too: it is tested where the
    model stands and at a moved point, where small shifts and gains (fresh biases, zero-initialised
    gains) have random values of natural size. A tensor without gradient where the model stands is
    undetermined. The model is left as it was: weights, buffers, gradients, modes and random state.

    Args:
        model: any module; run in train mode as model(x).
        loss_fn: scalar loss of (model(x), y).
        batch: (x, y).
        groups: name -> parameter names to test under a common factor. By default groups are
            searched among the tensors that are not invariant alone (the residual stream of a
            pre-norm transformer, the weights of a pre-activation ResNet, a weight and its bias in
            front of a LayerNorm), and those that hold are reported.
        seed: of the random moves.

    Returns:
        InvarianceReport; print it for a table.

    Raises:
        TypeError: batch is not a pair.
        ValueError: no trainable parameter, an empty group, an unknown name in groups, or a
            non-finite output.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8, eps=0.0), nn.Linear(8, 2))
        >>> batch = torch.randn(16, 4), torch.randint(2, (16,))
        >>> report = scale_invariance(net, nn.functional.cross_entropy, batch)
        >>> report.tensors["0.weight"].verdict, report.tensors["2.weight"].verdict
        ('yes', 'no')

    Source: the property is Li & Arora (2020), arXiv 1910.07454, Lemma 1.3; the test is this
    project's.
    """
    parameters = _checked_parameters(model, batch, groups)
    alone = {name: [p] for name, p in parameters.items()}
    with untouched(model, train=True):
        cosines = _gradient_cosines(model, loss_fn, batch, parameters, seed)
        evaluate = Evaluator(model, batch[0], seed)
        here = _defects(evaluate, alone, seed)
        with evaluate.moved(list(parameters.values()), _moved_values(parameters.values(), seed)):
            there = _defects(evaluate, alone, seed + 1)
            names = dict(groups) if groups is not None else _candidates(evaluate, parameters, there)
            together = {key: [parameters[n] for n in group] for key, group in names.items()}
            joint_there = _defects(evaluate, together, seed + 1)
        joint_here = _defects(evaluate, together, seed)
    tensors = {n: TensorVerdict(*_verdict(cosines[n], here[n], there[n]), cosines[n]) for n in alone}
    joint = [
        (key, JointVerdict(tuple(group), *_verdict(0.0, joint_here[key], joint_there[key])))
        for key, group in names.items()
    ]
    if groups is None:  # the search reports what holds
        held = [verdict for _, verdict in joint if verdict.verdict == "yes"]
        joint = [(f"joint {i}", verdict) for i, verdict in enumerate(held)]
    return InvarianceReport(tensors, dict(joint))


def defect(
    evaluate: Evaluator, tensors: Sequence[Tensor], seed: int, base: Tensor | None = None
) -> float:
    """|f(2W) - f(W)| / |f(W + D) - f(W)| for tensors W scaled together; `base` is f(W) if known.

    NaN where the random move does nothing either, or W = 0.
    """
    norm = joint_norm(tensors)
    base = evaluate() if base is None else base
    rounding = 1e3 * torch.finfo(tensors[0].dtype).eps * float(base.norm())
    draws = random_like(tensors, norm, seed)
    random = [t.detach() + d for t, d in zip(tensors, draws, strict=True)]
    change = float((evaluate.at(tensors, random) - base).norm())
    if norm == 0.0 or change <= rounding:
        return float("nan")
    return float((evaluate.at(tensors, [2 * t.detach() for t in tensors]) - base).norm()) / change


def _checked_parameters(
    model: nn.Module, batch: Any, groups: Mapping[str, Sequence[str]] | None
) -> dict[str, Tensor]:
    """The trainable parameters by name, after a look at the arguments."""
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise TypeError(f"batch must be a pair (x, y), got {type(batch).__name__}")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("model must have a trainable parameter, got none")
    for key, names in (groups or {}).items():
        if isinstance(names, str) or not names:
            raise ValueError(f"groups must map to lists of names, got {names!r} for {key!r}")
        unknown = sorted(set(names) - set(parameters))
        if unknown:
            raise ValueError(f"groups must name trainable parameters of the model, got {unknown}")
    return parameters


def _defects(
    evaluate: Evaluator, sets: Mapping[str, Sequence[Tensor]], seed: int
) -> dict[str, float]:
    """The defect of each set of tensors."""
    base = evaluate()
    return {name: defect(evaluate, tensors, seed, base) for name, tensors in sets.items()}


def _candidates(
    evaluate: Evaluator, parameters: Mapping[str, Tensor], defects: Mapping[str, float]
) -> dict[str, Sequence[str]]:
    """Candidates for joint invariance among what is not invariant alone at this (moved) point."""
    free = {name: p for name, p in parameters.items() if defects[name] >= YES}  # not NaN either
    return {f"joint {i}": names for i, names in enumerate(candidate_groups(evaluate, free))}


def _gradient_cosines(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batch: tuple[Any, Any],
    parameters: Mapping[str, Tensor],
    seed: int,
) -> dict[str, float]:
    """The cosine of gradient and weight; NaN where the gradient is 0 up to rounding."""
    torch.manual_seed(seed)
    with torch.enable_grad():
        loss = loss_fn(model(batch[0]), batch[1])
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    pairs = [(p.detach().double(), g) for p, g in zip(parameters.values(), grads, strict=True)]
    sizes = [0.0 if g is None else float(g.double().norm() * p.norm()) for p, g in pairs]
    floor = 1e2 * torch.finfo(loss.dtype).eps * max([*sizes, abs(float(loss.detach()))])
    return {
        name: math.nan if g is None or size <= floor else float((g.double() * p).sum()) / size
        for name, (p, g), size in zip(parameters, pairs, sizes, strict=True)
    }


def _moved_values(parameters: Iterable[Tensor], seed: int) -> list[Tensor]:
    """Values nearby: weights moved by a fifth of their size, small shifts and gains drawn anew."""
    moved = []
    for i, p in enumerate(parameters):
        norm, natural = joint_norm([p]), NATURAL * p.numel() ** 0.5
        hides = norm == 0.0 or (p.dim() <= 1 and norm < natural)
        draw = random_like([p], natural if hides else 0.2 * norm, 1000 + seed + i)[0]
        moved.append(draw if hides else p.detach() + draw)
    return moved


def _verdict(cosine: float, *defects: float) -> tuple[str, float]:
    """The verdict from the defects at the two points, and the larger defect."""
    largest = math.nan if any(map(math.isnan, defects)) else max(defects)
    if math.isnan(cosine) or math.isnan(largest):
        return "undetermined", largest
    return ("yes" if largest < YES else "no" if largest > NO else "undetermined"), largest
