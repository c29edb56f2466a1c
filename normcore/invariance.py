"""Which parameters are scale-invariant: yes, no or undetermined, with the measured defect.

W is scale-invariant when multiplying it by any c > 0 leaves the model's function as it is. The defect compares doubling W, exact in binary floats, with a random move of
the same size: |f(2W) - f(W)| / |f(W + D) - f(W)|, |D| = |W|. It is 0 for an invariant tensor, of order 1 for any other, whatever the shapes, and 1e-5 to 1e-3 when the eps of a norm layer
blurs it. The models run in train mode, since batch statistics are what makes a weight invariant.
"""

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


@dataclass(frozen=True)
class TensorVerdict:
    """The verdict on one tensor: defect (0 = invariant; NaN when undetermined for want of a gradient) and cosine of gradient and weight."""

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
    """What `scale_invariance` found: `tensors` by name, `groups` of tensors that are invariant only together."""

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
        lines += [f"{n:{width}}  {v.verdict:12} {v.defect:8.1e}  {v.cosine:8.1e}" for n, v in self.tensors.items()]
        lines += [f"{n:{width}}  {v.verdict:12} {v.defect:8.1e}  jointly: {', '.join(v.names)}" for n, v in self.groups.items()]
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

    A verdict of yes must hold for other values of the other parameters too: it is tested where the model stands and at a moved point, where
    tensors that are all zero (fresh biases, zero-initialised gains) have random values. A tensor without gradient where the model stands is undetermined.
    The model is left as it was: weights, buffers, gradients, modes and random state.

    Args:
        model: any module; run in train mode as model(x).
        loss_fn: scalar loss of (model(x), y).
        batch: (x, y).
        groups: name -> parameter names to test under a common factor. By default groups are searched among the tensors that are not invariant alone (the residual stream
            of a pre-norm transformer, the weights of a pre-activation ResNet, a weight and its bias in front of a LayerNorm).
        seed: of the random moves.

    Returns:
        InvarianceReport; print it for a table.

    Raises:
        TypeError: batch is not a pair.
        ValueError: no trainable parameter, an unknown name in groups, or a non-finite output.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8, eps=0.0), nn.Linear(8, 2))
        >>> batch = torch.randn(16, 4), torch.randint(2, (16,))
        >>> report = scale_invariance(net, nn.functional.cross_entropy, batch)
        >>> report.tensors["0.weight"].verdict, report.tensors["2.weight"].verdict
        ('yes', 'no')

    Source: the property is Li & Arora (2020), arXiv 1910.07454, Lemma 1.3; the test is this project's.
    """
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise TypeError(f"batch must be a pair (x, y), got {type(batch).__name__}")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("model must have a trainable parameter, got none")
    unknown = sorted({name for names in (groups or {}).values() for name in names} - set(parameters))
    if unknown:
        raise ValueError(f"groups must name trainable parameters of the model, got {unknown}")
    with untouched(model, train=True):
        cosines = _gradient_cosines(model, loss_fn, batch, parameters, seed)
        evaluate = Evaluator(model, batch[0], seed)
        here = {name: defect(evaluate, [p], seed) for name, p in parameters.items()}
        with evaluate.moved(list(parameters.values()), _moved_values(parameters.values(), seed)):
            there = {name: defect(evaluate, [p], seed + 1) for name, p in parameters.items()}
            tensors = {name: TensorVerdict(*_verdict(cosines[name], here[name], there[name]), cosines[name]) for name in parameters}
            if groups is None:
                alone = {name: p for name, p in parameters.items() if tensors[name].verdict == "no"}
                groups = {f"joint {i}": names for i, names in enumerate(candidate_groups(evaluate, alone))}
                joint = _joint_verdicts(evaluate, parameters, groups, seed, keep=("yes",))
            else:
                joint = _joint_verdicts(evaluate, parameters, groups, seed, keep=("yes", "no", "undetermined"))
    return InvarianceReport(tensors, joint)


def defect(evaluate: Evaluator, tensors: Sequence[Tensor], seed: int) -> float:
    """|f(2W) - f(W)| / |f(W + D) - f(W)| for tensors W scaled together; NaN where the random move does nothing either, or W = 0."""
    norm = joint_norm(tensors)
    base = evaluate()
    rounding = 1e3 * torch.finfo(tensors[0].dtype).eps * float(base.norm())
    random = [t.detach() + d for t, d in zip(tensors, random_like(tensors, norm, seed), strict=True)]
    change = float((evaluate.at(tensors, random) - base).norm())
    if norm == 0.0 or change <= rounding:
        return float("nan")
    return float((evaluate.at(tensors, [2 * t.detach() for t in tensors]) - base).norm()) / change


def _gradient_cosines(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], batch: tuple[Any, Any], parameters: Mapping[str, Tensor], seed: int
) -> dict[str, float]:
    """The cosine of gradient and weight; NaN where the gradient is 0 up to rounding."""
    torch.manual_seed(seed)
    with torch.enable_grad():
        loss = loss_fn(model(batch[0]), batch[1])
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    sizes = [0.0 if g is None else float(g.double().norm()) * joint_norm([p]) for p, g in zip(parameters.values(), grads, strict=True)]
    floor = 1e2 * torch.finfo(loss.dtype).eps * max([*sizes, abs(float(loss.detach()))])
    cosines = {}
    for (name, p), g, size in zip(parameters.items(), grads, sizes, strict=True):
        alive = g is not None and size > floor
        cosines[name] = float((g.double() * p.detach().double()).sum()) / size if alive and g is not None else float("nan")
    return cosines


def _moved_values(parameters: Iterable[Tensor], seed: int) -> list[Tensor]:
    """Values nearby: each tensor moved by a fifth of its size, and a tensor of zeros by random values of size 1/2, which show what zeros hide."""
    moved = []
    for i, p in enumerate(parameters):
        norm = joint_norm([p])
        size = 0.2 * norm if norm > 0 else 0.5 * p.numel() ** 0.5
        moved.append(p.detach() + random_like([p], size, 1000 + seed + i)[0])
    return moved


def _verdict(cosine: float, *defects: float) -> tuple[str, float]:
    """The verdict from the defects at the two points, and the larger defect."""
    largest = max(defects) if all(d == d for d in defects) else float("nan")
    if cosine != cosine or largest != largest:
        return "undetermined", largest
    return ("yes" if largest < YES else "no" if largest > NO else "undetermined"), largest


def _joint_verdicts(
    evaluate: Evaluator, parameters: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]], seed: int, keep: tuple[str, ...]
) -> dict[str, JointVerdict]:
    """Test each group under a common factor; the search keeps only what holds."""
    verdicts = {}
    for name, names in groups.items():
        size = defect(evaluate, [parameters[n] for n in names], seed)
        verdict, _ = _verdict(0.0, size)
        if verdict in keep:
            verdicts[name] = JointVerdict(tuple(names), verdict, size)
    return verdicts
