"""Which parameters are scale-invariant, alone or together: verdicts from a few reverse passes.

W is scale-invariant when multiplying it by any c > 0 leaves the model's function as it is. Defect: the derivative of
the outputs along W, over what it is along a random direction of length |W|. It is 0 for an invariant tensor, of order
1 for any other, whatever the shapes, and 1e-7 to 1e-2 when the eps of a norm layer blurs it: then what doubling W does.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normcore.checks import checked_loss, require_type
from normcore.invariance.degrees import literals_without_eps, without_eps
from normcore.invariance.probing import (
    Evaluator,
    Forward,
    Loss,
    Points,
    as_real,
    checked_parameters,
    converted,
    finest,
    flat_output,
    inputs_and_targets,
    precision,
    refuse_strays,
    roles_in,
    stand_ins,
    tracked,
)
from normcore.invariance.symmetries import EXACT, TINY, joint_groups, reverse_rows

YES = 1e-3
"""A defect below this, with every eps as good as 0, is invariance."""

NO = 2e-2
"""A defect above this is none; between the two the verdict is undetermined."""

BLUR = 1e-2
"""Where eps makes the defect larger than this, the answer is "yes but for eps"."""
DOUBLING = 3 / 8
"""Of the derivative along W that is due to eps: scaled by c it falls as 1/c^2, and up to c = 2 makes up this much."""
FLOOR = 10.0
"""Effects below this many roundings are none in float64; in less they are looked at again in float64."""

OWN = ("params", "name", "scale_invariant")
NO_DECAY = ("elementwise", "table")
"""Keys and roles of `param_groups`."""


@dataclass(frozen=True)
class TensorVerdict:
    """The verdict on one tensor.

    Attributes:
        verdict: "yes"; "yes but for eps", with which the defect is above 1e-2; "no"; "undetermined".
        defect: the larger of `exact` and of what doubling the tensor does where the model stands, through its own eps.
        cosine: of the loss's gradient and the tensor, where the model stands; NaN if there is no gradient.
        inert: no value of it matters in train mode, like that of a bias in front of a BatchNorm.
        exact: the defect at points nearby with every eps as good as 0, which decides.
        role: "matrix" (multiplies activations), "table" (is looked up), "elementwise" (gain, shift, token), "unused".

    """

    verdict: str
    defect: float
    cosine: float
    inert: bool = False
    exact: float = math.nan
    role: str = "elementwise"


@dataclass(frozen=True)
class JointVerdict:
    """The verdict on several tensors scaled by a common factor; as `TensorVerdict`."""

    names: tuple[str, ...]
    verdict: str
    defect: float
    exact: float = math.nan


@dataclass(frozen=True)
class InvarianceReport:
    """What `scale_invariance` found: `tensors` by name, `groups` invariant only together."""

    tensors: Mapping[str, TensorVerdict]
    groups: Mapping[str, JointVerdict]

    @property
    def invariant(self) -> list[str]:
        """Names of the tensors that are scale-invariant alone, but for eps or not."""
        return [name for name, verdict in self.tensors.items() if verdict.verdict.startswith("yes")]

    @property
    def inert(self) -> list[str]:
        """Names of the tensors whose values do not matter in train mode."""
        return [name for name, verdict in self.tensors.items() if verdict.inert]

    def __str__(self) -> str:
        width = max(map(len, [*self.tensors, *self.groups, "parameter"]))
        lines = [f"{'parameter':{width}}  {'invariant':15}    defect  without eps    cosine"]
        rows: list[tuple[str, Any, str]] = [
            (name, v, "inert" if v.inert else f"{v.cosine:8.1e}") for name, v in self.tensors.items()
        ]
        rows += [(name, g, f"jointly: {', '.join(g.names)}") for name, g in self.groups.items()]
        for name, v, rest in rows:
            lines.append(f"{name:{width}}  {v.verdict:15}  {v.defect:8.1e}  {v.exact:11.1e}  {rest}")
        return "\n".join(lines)


def scale_invariance(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batch: Any,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    forward: Forward | None = None,
    seed: int = 0,
) -> InvarianceReport:
    """Test every trainable tensor, and groups of tensors, for scale invariance.

    Four reverse passes decide on all tensors, with the loss's and with random cotangents, where the model stands and
    at two points nearby, where tiny tensors (fresh biases, zero-initialised gains) have values of natural size and
    every eps is as good as 0. What float32 leaves open is decided in float64, and what is invariant is confirmed
    by scaling it. Runs in train mode (modules that a training model has in eval mode stay there), on
    a copy in float32 at least. Model, modes and random state are left as they were.

    Args:
        model: any module.
        loss_fn: scalar loss of (output, y).
        batch: (x, y) for model(x), or for model(**x) if x is a mapping; or one mapping, as of Hugging Face, whose
            "labels" are y. From model(**x) the `logits` are taken, if it has such.
        groups: name -> parameter names to test under a common factor. By default groups are
            searched among the tensors that are not invariant alone (a pre-norm residual stream, a
            weight and its bias before a LayerNorm); of overlapping ones the smallest is reported.
        forward: from (model, x) to the output, instead of the above.
        seed: of the random moves.

    Returns:
        InvarianceReport; print it for a table.

    Raises:
        TypeError: model is not a module in Python, or batch neither a pair nor a mapping.
        ValueError: no trainable parameter, an empty group or unknown name, outputs that are not finite or have no
            gradient, or a function that changes from one evaluation to the next.

    Example:
        >>> layers = nn.Linear(4, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 2)
        >>> net = nn.Sequential(*layers)
        >>> batch = torch.randn(16, 4), torch.randint(2, (16,))
        >>> report = scale_invariance(net, nn.functional.cross_entropy, batch)
        >>> report.tensors["0.weight"].verdict, report.tensors["2.weight"].verdict
        ('yes', 'no')

    Source: the property is that of Li & Arora (2020), arXiv 1910.07454, Lemma 1.3; the test is ours.

    """
    parameters = checked_parameters(model)
    require_type("loss_fn", loss_fn, Callable, "a function")
    names = list(parameters)
    named = _checked_groups(groups, names)
    x, y = inputs_and_targets(batch)
    coarse, double = precision(model), torch.float64

    def ask(dtype: torch.dtype, forward: Forward | None) -> tuple[Evaluator, Loss]:
        targets = converted(y, dtype)
        evaluate = Evaluator(model, converted(x, dtype), seed, forward)
        return evaluate, lambda output: checked_loss(loss_fn(output, targets))

    with stand_ins(model, coarse):
        bare = literals_without_eps(forward)
        with without_eps(model):
            evaluate, loss = ask(coarse, bare)
            points = evaluate.nearby(names, seed)
            near = _Nearby(evaluate, loss, names, points)
            found: dict[tuple[str, ...], tuple[str, float]] = {(name,): near.judge((name,)) for name in names}
            unsure = [name for name in names if found[name,][0] not in ("yes", "no")]
            if unsure and coarse != double:
                found |= {(name,): ("undetermined", found[name,][1]) for name in unsure}
                if finest(model, x, forward) == double:
                    with stand_ins(model, double):
                        again = _Nearby(*ask(double, bare), unsure, points)
                        found |= {(name,): again.judge((name,)) for name in unsure}
            with evaluate.moved(points[1]):
                if groups is None:
                    free = near.rows.of([name for name in names if found[name,][0] in ("no", "undetermined")])
                    sets = joint_groups(evaluate.on_short_rows(), free, seed)
                    named = {f"joint {i}": tuple(names) for i, names in enumerate(sets)}
                found = {group: near.judge(group) for group in named.values()} | found
                found |= near.doubted(found, EXACT if groups is None else NO)
        evaluate, loss = ask(coarse, forward)
        evaluate.inputs = tracked(evaluate.inputs)
        here, outputs = reverse_rows(evaluate, names, seed, 1, loss)
        refuse_strays(outputs, parameters)
        roles, size = roles_in(outputs, evaluate.tensors), float(flat_output(outputs).norm())
        roots = [max(1, as_real(t).numel()) ** 0.5 for t in evaluate.tensors.values()]
    floor = near.floor * size / max(float(near.base.norm()), TINY)
    cosines = here.radial[0] / np.where(here.size[0] > floor, here.size[0], math.nan) / roots

    def worded(group: tuple[str, ...]) -> tuple[str, float, float]:
        """The verdict, the larger of the defects without and with eps, and the former."""
        state, exact = found[group]
        defect = max(0.0 if math.isnan(exact) else exact, DOUBLING * here.defect(group))
        if here.effect(group) < FLOOR * floor:  # the latter is not known to a percent
            defect = exact
        blurred = state == "yes" and defect > BLUR
        return {"inert": "undetermined"}.get(state, "yes but for eps" if blurred else state), defect, exact

    tensors, joint = {}, {}
    for name, cosine in zip(names, cosines.tolist(), strict=True):
        verdict, defect, exact = worded((name,))
        tensors[name] = TensorVerdict(verdict, defect, cosine, found[name,][0] == "inert", exact, roles[name])
    for key, group in named.items():
        joint[key] = JointVerdict(group, *worded(group))
    if groups is None:
        joint = {key: verdict for key, verdict in joint.items() if verdict.verdict.startswith("yes")}
    return InvarianceReport(tensors, joint)


def param_groups(
    model: nn.Module, report: InvarianceReport, *, no_decay: bool | Collection[str] = False, **options: Any
) -> list[dict[str, Any]]:
    """Make parameter groups: tensors invariant alone, each group invariant jointly, and the rest.

    Inert tensors go with the rest, but for a bias added to what an invariant weight of its own module makes: it goes
    with that weight, whose scale it must keep. Joint groups of gains and shifts alone (a BatchNorm in front
    of another) stay with the rest: nobody decays them, and eval mode tells them apart.

    Args:
        model: the model of the report.
        report: from `scale_invariance`.
        no_decay: True takes gains, shifts and biases, single tokens and embeddings out of every group into one without
            weight decay, by what they do (`TensorVerdict.role`) and not by their names; or only those of the
            roles named, "elementwise" or "table". A joint group that loses a member is no longer invariant, and
            not tagged.
        **options: hyper-parameters to put into every group (lr, weight_decay, momentum, ...).

    Returns:
        Dicts with "params", "name" and "scale_invariant" (True for all but "no_decay" and "rest"), every trainable
        parameter in exactly one; empty groups are left out.

    Raises:
        TypeError: model is not a module.
        ValueError: the report is of another model; an option that is computed here; no_decay names another role.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> batch = torch.randn(16, 4), torch.randint(2, (16,))
        >>> report = scale_invariance(net, nn.functional.cross_entropy, batch)
        >>> [(g["name"], g["scale_invariant"], len(g["params"])) for g in param_groups(net, report, lr=0.1)]
        [('scale_invariant', True, 1), ('rest', False, 4)]
        >>> groups = param_groups(net, report, no_decay=True, weight_decay=0.1)
        >>> [(g["name"], g["weight_decay"], len(g["params"])) for g in groups]
        [('scale_invariant', 0.1, 1), ('no_decay', 0.0, 3), ('rest', 0.1, 1)]

    """
    parameters = checked_parameters(model)
    require_type("report", report, InvarianceReport, "an InvarianceReport")
    require_type("no_decay", no_decay, bool | Collection, "a bool or roles")
    if set(parameters) != set(report.tensors):
        odd = sorted(set(parameters) ^ set(report.tensors))
        raise ValueError(f"report must be of this model, got one that differs in {odd}")
    if set(OWN) & set(options):
        raise ValueError(f"options must leave {', '.join(OWN)} alone, got {sorted(set(OWN) & set(options))}")
    roles = (NO_DECAY if no_decay else ()) if isinstance(no_decay, bool) else tuple(no_decay)
    if isinstance(no_decay, str) or not all(role in NO_DECAY for role in roles):
        raise ValueError(f"no_decay must be a bool or roles among {NO_DECAY}, got {no_decay!r}")
    bare = {name for name, verdict in report.tensors.items() if verdict.role in roles}
    # an invariant matrix that is standardised before it multiplies looks elementwise
    bare -= {n for n in report.invariant if report.tensors[n].role != "table" and parameters[n].dim() > 1}
    sets = {"scale_invariant": (set(report.invariant) | _shifts_of(model, report)) - bare}
    for name, verdict in report.groups.items():
        members = set(verdict.names)
        has_matrix = any(parameters[n].dim() > 1 for n in members)
        if verdict.verdict.startswith("yes") and has_matrix and not members & bare.union(*sets.values()):
            sets[name] = members
    sets |= {"no_decay": bare, "rest": set(parameters) - bare.union(*sets.values())}
    return [
        {"params": [p for name, p in parameters.items() if name in names], "name": key}
        | {"scale_invariant": key not in ("no_decay", "rest"), **options}
        | ({"weight_decay": 0.0} if key == "no_decay" else {})
        for key, names in sets.items()
        if names
    ]


def _shifts_of(model: nn.Module, report: InvarianceReport) -> set[str]:
    """The inert biases in modules that own an invariant weight: their sum must keep its scale."""
    names = {p: name for name, p in model.named_parameters()}
    owned = [{names[p] for p in module.parameters(recurse=False)} for module in model.modules()]
    return {name for own in owned if own & set(report.invariant) for name in own & set(report.inert)}


def _checked_groups(groups: Any, parameters: Sequence[str]) -> dict[str, tuple[str, ...]]:
    require_type("groups", groups, Mapping | None, "a mapping or None")
    for key, names in (groups or {}).items():
        if not isinstance(names, Collection) or isinstance(names, str) or not names:
            raise ValueError(f"groups must map to lists of names, got {names!r} for {key!r}")
        unknown = sorted(set(names) - set(parameters), key=str)
        if unknown:
            raise ValueError(f"groups must name trainable parameters of the model, got {unknown}")
    return {key: tuple(dict.fromkeys(names)) for key, names in (groups or {}).items()}


class _Nearby:
    """Equations of the loss's cotangent at one point nearby, and of a random one at another."""

    def __init__(self, evaluate: Evaluator, loss: Loss, names: list[str], points: Points) -> None:
        """Take them. Where the outputs are `base`, a change of them below `floor` is rounding."""
        self.evaluate = evaluate
        with evaluate.moved(points[0]):
            self.of_loss = reverse_rows(evaluate, names, evaluate.seed, 0, loss)[0]
        with evaluate.moved(points[1]):
            self.of_random, outputs = reverse_rows(evaluate, names, evaluate.seed + 1)
            self.base = flat_output(outputs)
            del outputs  # and with it the tape
            self.floor = FLOOR * evaluate.rounding(self.base)
        self.rows = self.of_loss + self.of_random

    def judge(self, group: Sequence[str]) -> tuple[str, float]:
        """A state (a verdict, or "inert") and the defect of the group."""
        effect, defect = self.of_random.effect(group), self.rows.defect(group)
        if effect <= self.floor:
            return "inert", math.nan
        if self.of_loss.effect(group) > self.floor:  # else the loss does not see it
            if defect < YES and self.floor < 0.1 * effect:
                return "yes", defect
            if defect > max(NO, self.floor / effect):
                return "no", defect
        return "undetermined", defect

    def doubted(self, found: Mapping[tuple[str, ...], tuple[str, float]], bound: float) -> dict[Any, Any]:
        """What seems invariant or inert and is not confirmed: by powers of two, or by new values."""
        moves: dict[tuple[str, ...], tuple[dict[str, Tensor], float]] = {}
        for turn, (group, (state, _)) in enumerate(found.items()):
            if state == "yes":
                # by another power each time: two halves of a group must not hide each other
                factor = (2.0, 0.25, 0.5, 4.0)[turn % 4]
                limit = (bound if len(group) > 1 else NO) * self.of_random.effect(group)
                values = {name: factor * self.evaluate.tensors[name].detach() for name in group}
                moves[group] = values, max(limit, 0.3 * self.floor)
            elif state == "inert":
                moves[group] = self.evaluate.nearby(group, turn)[0], self.floor
        return {group: ("undetermined", found[group][1]) for group in moves.keys() - self._held(moves)}

    def _held(self, moves: Mapping[Any, tuple[dict[str, Tensor], float]]) -> set[Any]:
        """The moves (values, limit) that take the outputs no further than that; all at once first, then in halves."""
        values = {name: value for move, _ in moves.values() for name, value in move.items()}
        least = min((limit for _, limit in moves.values()), default=0.0)
        if not moves or self.evaluate.distance(values, self.base) <= least:
            return set(moves)
        keys, half = list(moves), len(moves) // 2
        halves = [keys[:half], keys[half:]] if half else []
        return {key for part in halves for key in self._held({key: moves[key] for key in part})}
