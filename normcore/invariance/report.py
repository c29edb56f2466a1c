"""Which parameters are scale-invariant: yes, no or undetermined, with the measured defect.

W is scale-invariant when multiplying it by any c > 0 leaves the model's function as it is. Defect:
|f(2W) - f(W)| / |f(W + D) - f(W)|, D random, |D| = |W| (doubling is exact in binary floats). It is
0 for an invariant tensor, of order 1 for any other, whatever the shapes, and 1e-5 to 1e-3 when the
eps of a norm layer blurs it. Models run in train mode: batch statistics make a weight invariant.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normcore.invariance.joint import candidate_groups
from normcore.invariance.probing import Evaluator, joint_norm, random_like, untouched
from normcore.sharded import is_sharded

YES = 1e-2
"""A defect below this is invariance: norm layers with eps = 1e-5 give up to about 1e-3."""

NO = 5e-2
"""A defect above this is none; between the two the verdict is undetermined."""

NATURAL = 0.5
"""Least root mean square of a shift or gain at the moved point: a tiny one hides, as 0 does."""


@dataclass(frozen=True)
class TensorVerdict:
    """The verdict on one tensor, its defect and its cosine; each is NaN where it has no effect.

    `inert` says that no value of it matters in train mode, like that of a bias in front of a BatchNorm.
    """

    verdict: str
    defect: float
    cosine: float
    inert: bool = False


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

    @property
    def inert(self) -> list[str]:
        """Names of the tensors whose values do not matter in train mode."""
        return [name for name, verdict in self.tensors.items() if verdict.inert]

    def __str__(self) -> str:
        width = max(map(len, [*self.tensors, *self.groups, "parameter"]))
        lines = [f"{'parameter':{width}}  invariant     defect    cosine"]
        for name, v in self.tensors.items():
            lines.append(f"{name:{width}}  {v.verdict:12} {v.defect:8.1e}  {v.cosine:8.1e}")
        for name, g in self.groups.items():
            lines.append(f"{name:{width}}  {g.verdict:12} {g.defect:8.1e}  jointly: {', '.join(g.names)}")
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

    A yes must hold for other values of the other parameters too: it is tested where the model stands and at a
    moved point, where small shifts and gains (fresh biases) have random values of natural size. A tensor without
    gradient where the model stands is undetermined. Model, modes and random state are left as they were.

    Args:
        model: any module; run in train mode as model(x).
        loss_fn: scalar loss of (model(x), y).
        batch: (x, y).
        groups: name -> parameter names to test under a common factor. By default groups are
            searched among the tensors that are not invariant alone (a pre-norm residual stream, a
            weight and its bias before a LayerNorm); of overlapping ones the smallest is reported.
        seed: of the random moves.

    Returns:
        InvarianceReport; print it for a table.

    Raises:
        TypeError: batch is not a pair.
        ValueError: no trainable parameter, an empty group or unknown name, a non-finite output.

    Example:
        >>> layers = nn.Linear(4, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 2)
        >>> net = nn.Sequential(*layers)
        >>> batch = torch.randn(16, 4), torch.randint(2, (16,))
        >>> report = scale_invariance(net, nn.functional.cross_entropy, batch)
        >>> report.tensors["0.weight"].verdict, report.tensors["2.weight"].verdict
        ('yes', 'no')

    Source: the property is that of Li & Arora (2020), arXiv 1910.07454, Lemma 1.3; the test is ours.

    """
    parameters = _checked(model, batch, groups)
    alone = {name: [p] for name, p in parameters.items()}
    with untouched(model, train=True):
        torch.manual_seed(seed)
        cosines = _cosines(model, loss_fn, batch, parameters)
        evaluate = Evaluator(model, batch[0], seed)
        here = _defects(evaluate, alone, seed)
        with evaluate.moved(list(parameters.values()), moved_values(parameters.values(), seed)):
            there = _defects(evaluate, alone, seed + 1)
            names = dict(groups) if groups is not None else _candidates(evaluate, parameters, here, there)
            together = {key: [parameters[n] for n in group] for key, group in names.items()}
            joint_there = _defects(evaluate, together, seed + 1)
        joint_here = _defects(evaluate, together, seed)
    tensors = {
        n: TensorVerdict(*_verdict(c, here[n], there[n]), c, inert=math.isnan(there[n]))
        for n, c in cosines.items()
    }
    joint = {
        key: JointVerdict(tuple(group), *_verdict(0.0, joint_here[key], joint_there[key]))
        for key, group in names.items()
    }
    return InvarianceReport(tensors, joint if groups is not None else _disjoint(joint.values()))


def defect(evaluate: Evaluator, tensors: Sequence[Tensor], seed: int, base: Tensor) -> float:
    """|f(2W) - f(W)| / |f(W + D) - f(W)| for W together, base = f(W); NaN if D does nothing or W = 0."""
    norm = joint_norm(tensors)
    rounding = 1e3 * torch.finfo(tensors[0].dtype).eps * float(base.norm())
    draws = random_like(tensors, norm, seed)
    random = [t.detach() + d for t, d in zip(tensors, draws, strict=True)]
    change = float((evaluate.at(tensors, random) - base).norm())
    if norm == 0.0 or change <= rounding:
        return float("nan")
    return float((evaluate.at(tensors, [2 * t.detach() for t in tensors]) - base).norm()) / change


def _checked(model: nn.Module, batch: Any, groups: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """The trainable parameters by name, after a look at the arguments."""
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise TypeError(f"batch must be a pair (x, y), got {type(batch).__name__}")
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    parameters = {name: p for name, p in parameters.items() if p.requires_grad}
    if not parameters:
        raise ValueError("model must have a trainable parameter, got none")
    if any(is_sharded(p) for p in parameters.values()):
        raise ValueError("model must have whole parameters, got sharded ones: test it before it is sharded")
    for key, names in (groups or {}).items():
        if isinstance(names, str) or not names:
            raise ValueError(f"groups must map to lists of names, got {names!r} for {key!r}")
        unknown = sorted(set(names) - set(parameters))
        if unknown:
            raise ValueError(f"groups must name trainable parameters of the model, got {unknown}")
    return parameters


def _defects(evaluate: Evaluator, sets: Mapping[str, list[Tensor]], seed: int) -> dict[str, float]:
    """The defect of each set of tensors."""
    base = evaluate()
    return {name: defect(evaluate, tensors, seed, base) for name, tensors in sets.items()}


def _candidates(
    evaluate: Evaluator, tensors: Mapping[str, Tensor], here: Mapping[str, float], there: Mapping[str, float]
) -> dict[str, Sequence[str]]:
    """Candidates among what is not invariant alone when moved: first the tensors alive here."""
    free = {name: p for name, p in tensors.items() if there[name] >= YES}  # not NaN either
    alive = {name: p for name, p in free.items() if not math.isnan(here[name])}
    searches = [alive] if len(alive) == len(free) else [alive, free]
    found = [names for search in searches for names in candidate_groups(evaluate, search)]
    return {str(i): names for i, names in enumerate(found)}


def _disjoint(verdicts: Iterable[JointVerdict]) -> dict[str, JointVerdict]:
    """The groups that hold, the smallest first, less those that overlap an earlier one."""
    kept: list[JointVerdict] = []
    for verdict in sorted(verdicts, key=lambda v: len(v.names)):
        if verdict.verdict == "yes" and not any(set(verdict.names) & set(k.names) for k in kept):
            kept.append(verdict)
    return {f"joint {i}": verdict for i, verdict in enumerate(kept)}


def _cosines(
    model: nn.Module, loss_fn: Any, batch: Any, parameters: Mapping[str, Tensor]
) -> dict[str, float]:
    """The cosine of gradient and weight; NaN where the gradient is 0 up to rounding."""
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


def moved_values(parameters: Iterable[Tensor], seed: int) -> list[Tensor]:
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
