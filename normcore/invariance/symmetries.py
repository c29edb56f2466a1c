"""All scaling symmetries of a net, from reverse passes.

Exponents a are a scaling symmetry when f(c^{a_1} W_1, ..., c^{a_n} W_n) = f(W) for all c > 0, f being all outputs on
a batch. Differentiated at c = 1: sum_i a_i <d(u.f)/dW_i, W_i> = 0 for every cotangent u, at every W. A reverse pass
with a random u gives one such equation for all tensors at once; the symmetries are the null space of some of them.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normcore.checks import FloatArray
from normcore.invariance.degrees import literals_without_eps, without_eps
from normcore.invariance.probing import (
    Evaluator,
    Forward,
    Loss,
    as_real,
    checked_parameters,
    converted,
    finest,
    flat_output,
    inputs_and_targets,
    refuse_strays,
    stand_ins,
)

Integers = NDArray[np.int64]

EXACT = 3e-5
"""Scaling the tensors of a symmetry may change the outputs by this part of what a random move does."""

ROWS_A_POINT = 5
"""Equations from one forward pass."""

TINY = 1e-100

PENALTY = 1e-5
"""Picks the cheapest of several exact sets; errors of 1e-6 in the rows put 1e-12 into their products, far below."""

RIDGE = 1e-10
"""Keeps the products regular when a column enters that the chosen ones already span."""


@dataclass(frozen=True)
class Rows:
    """Equations (rows, tensors): `radial` along each tensor W; `size` along a random direction of length |W|, rms."""

    names: list[str]
    radial: FloatArray
    size: FloatArray

    def __add__(self, more: "Rows") -> "Rows":
        return Rows(self.names, np.r_[self.radial, more.radial], np.r_[self.size, more.size])

    def of(self, names: Sequence[str]) -> "Rows":
        """The equations of some of the tensors."""
        columns = [self.names.index(name) for name in names]
        return Rows(list(names), self.radial[:, columns], self.size[:, columns])

    def sizes(self) -> FloatArray:
        """What a random move of each tensor does to the outputs."""
        rms: FloatArray = np.linalg.norm(self.size, axis=0) / len(self.size) ** 0.5
        return rms.clip(min=TINY)

    def spare(self, eps: float) -> int:
        """How many more equations there are than independent ones, up to the rounding of numbers with this eps."""
        values = np.linalg.svd(self.radial / self.sizes(), compute_uv=False) / len(self.radial) ** 0.5
        return len(self.radial) - int((values > max(1e-9, 1e3 * eps)).sum())

    def effect(self, group: Sequence[str]) -> float:
        """What a random move of the group does."""
        return float(np.linalg.norm(self.of(group).sizes()))

    def defect(self, group: Sequence[str]) -> float:
        """What scaling the group does, over what a random move does: 0 for a symmetry, of order 1 otherwise."""
        radial = np.linalg.norm(self.of(group).radial.sum(axis=1)) / len(self.radial) ** 0.5
        return float(radial) / self.effect(group)


@torch.enable_grad()
def reverse_rows(
    evaluate: Evaluator, names: list[str], seed: int, count: int = 1, loss: Loss | None = None
) -> tuple[Rows, list[Tensor]]:
    """Equations from one forward pass, of the loss's own cotangent and of random ones, and the outputs of that pass."""
    result, outputs = evaluate.result()
    live = [output for output in outputs if output.requires_grad]
    if not live:
        raise ValueError("model must give floating-point outputs that have a gradient, got none")
    generator = torch.Generator().manual_seed(seed)
    tensors = [evaluate.tensors[name] for name in names]
    norms = [float(as_real(t).norm()) / max(1, as_real(t).numel()) ** 0.5 for t in tensors]
    radial, size = [], []
    # one point gives no more independent equations than outputs, and fewer where these add up to one
    for i in range(-(loss is not None), min(count, max(1, sum(output.numel() for output in live) // 2))):
        drawn = [torch.randn(output.shape, generator=generator).to(output) for output in live if i >= 0]
        if loss is not None and not drawn:
            drawn = _loss_cotangent(loss(result), live)
        found = torch.autograd.grad(live, tensors, drawn, retain_graph=True, allow_unused=True)
        grads = [t.new_zeros(1) if g is None else as_real(g) for g, t in zip(found, tensors, strict=True)]
        radial.append([float((g * as_real(t)).sum()) for g, t in zip(grads, tensors, strict=True)])
        size.append([float(g.norm()) * norm for g, norm in zip(grads, norms, strict=True)])
    rows = Rows(names, np.array(radial), np.array(size))
    if not (np.isfinite(rows.radial) & np.isfinite(rows.size)).all():
        raise ValueError("model must have finite gradients on the batch, got NaN or infinity")
    return rows, outputs


def _loss_cotangent(loss: Tensor, outputs: list[Tensor]) -> list[Tensor]:
    """The derivative of the loss by the outputs, as long as a random cotangent."""
    grads = torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True)
    filled = [torch.zeros_like(o) if g is None else g for g, o in zip(grads, outputs, strict=True)]
    norm = math.hypot(*(float(g.norm()) for g in filled))
    return [g * (sum(o.numel() for o in outputs) ** 0.5 / norm) if norm else g for g in filled]


def more_rows(evaluate: Evaluator, rows: Rows, seed: int) -> Rows:
    """Add equations of the same tensors at a point nearby."""
    with evaluate.moved(evaluate.nearby(rows.names, seed)[0]):
        return rows + reverse_rows(evaluate, rows.names, seed, ROWS_A_POINT)[0]


def joint_groups(evaluate: Evaluator, rows: Rows, seed: int) -> list[list[str]]:
    """Disjoint sets of tensors whose columns add up to zero, the smaller first; of tensors of which none's alone does.

    Few equations find small sets: one with half as many tensors as there are equations does not cancel by chance.
    What is found is left out, so that the rest needs fewer, until there are two more than are independent.
    """
    found: list[list[str]] = []
    rows = more_rows(evaluate, rows, seed) if len(rows.names) > 1 else rows
    # of tensors with one and the same column (value against output) the last stands for all
    gaps = np.linalg.norm(rows.radial[:, :, None] - rows.radial[:, None], axis=0)
    twins = np.triu(gaps < EXACT * np.linalg.norm(rows.radial, axis=0), 1).any(axis=1)
    rows = rows.of(list(itertools.compress(rows.names, ~twins)))
    while len(rows.names) > 1:
        enough = rows.spare(evaluate.eps) >= 2
        lengths = np.maximum(np.linalg.norm(rows.radial, axis=0), TINY)
        units = rows.radial / lengths
        most = len(rows.names) if enough else len(units) // 2
        candidates: list[list[str]] = []
        for start, name in enumerate(rows.names):
            if name not in itertools.chain(*candidates):
                chosen = _sparse_null_vector(units.T @ units, start, most) * lengths[start] / lengths > 0.5
                group = [name for name, keep in zip(rows.names, chosen, strict=True) if keep]
                candidates += [group] if len(group) > 1 and rows.defect(group) < EXACT else []
        for group in sorted(candidates, key=len):
            found += [] if set(group) & set(itertools.chain(*found)) else [group]
        rows = rows.of([name for name in rows.names if name not in itertools.chain(*found)])
        if enough:
            break
        more = 0 if candidates else 1.5 * len(rows.radial)  # each search costs time of its own
        while len(rows.radial) < more and rows.spare(evaluate.eps) < 2:
            seed += 1
            rows = more_rows(evaluate, rows, seed)
    return found


def _sparse_null_vector(gram: FloatArray, start: int, most: int) -> FloatArray:
    """Minimise d'Gd / 2 + PENALTY * sum(d) over d >= 0 with d[start] = 1, by an active set; give up beyond `most` parts.

    The columns have unit length, so that of two sets with the same effect the one with the fewest and largest parts
    is the cheaper; between equals the later tensor is.
    """
    n = len(gram)
    # a slope of one percent over the tensors decides between equals, so that no rounding does
    cost = PENALTY * (1.0 - 1e-2 * np.arange(n) / n)
    ridge = RIDGE * np.eye(n)
    d = np.zeros(n)
    d[start] = 1.0
    active: list[int] = []  # the parts that may differ from 0; the start is held at 1 and never among them
    for _ in range(4 * n):
        # at the minimum no part at 0 would lower the objective by growing
        push = -(gram @ d) - cost
        push[[start, *active]] = -1.0
        if push.max() <= 1e-2 * PENALTY or len(active) >= most:
            break
        active.append(int(push.argmax()))
        while active:
            # the minimum over the active parts, their bounds left out: a linear system
            part = np.ix_(active, active)
            target = np.linalg.solve(gram[part] + ridge[part], -(gram[active, start] + cost[active]))
            if (target > 0).all():
                d[active] = target
                break
            # it lies beyond a bound: go towards it until the first part is 0, and let that one go. A part that
            # stays positive sets no limit: its share of the way is the whole
            here = d[active]
            shares = np.where(target <= 0, here / np.maximum(here - target, 1e-300), 1.0)
            d[active] = here + shares.min() * (target - here)
            leaving = int(shares.argmin())
            d[active[leaving]] = 0.0
            del active[leaving]
    return d


@dataclass(frozen=True)
class ScalingSymmetries:
    """The scaling symmetries of a net on a batch. See `scaling_symmetries`; print it for a table.

    Attributes:
        names: of the n trainable tensors.
        exponents: integers (k, n), a verified symmetry a row: W_i -> c^{a_i} W_i leaves the outputs as they are.
        inert: names of the tensors whose values do not matter (each has a row of its own).
        gap: the smallest singular value that is not zero over the largest that is; inf if none is.
        conserved: (k,) values of sum_i a_i |W_i|^2, which gradient flow keeps.
        dimension: of the null space; above k where a symmetry could not be made of integers and verified.

    """

    names: tuple[str, ...]
    exponents: Integers
    inert: tuple[str, ...]
    gap: float
    conserved: FloatArray
    dimension: int

    def __str__(self) -> str:
        count, open_ = len(self.exponents), self.dimension - len(self.exponents)
        lines = [f"{count} scaling symmetries of {len(self.names)} tensors, gap {self.gap:.1e}"]
        lines += [f"{open_} more undetermined"] if open_ else []
        lines += [f"{'kind':10} {'conserved':>10}  exponents"]
        for row, value in zip(self.exponents, self.conserved, strict=True):
            parts = [f"{name}^{a}".removesuffix("^1") for name, a in zip(self.names, row, strict=True) if a]
            alone = "inert" if parts[0] in self.inert else "alone"
            kind = alone if len(parts) == 1 else "jointly" if (row >= 0).all() else "reciprocal"
            lines.append(f"{kind:10} {value:10.3g}  {' '.join(parts)}")
        return "\n".join(lines)


def scaling_symmetries(
    model: nn.Module, batch: Any, *, forward: Forward | None = None, seed: int = 0
) -> ScalingSymmetries:
    """Find every scaling symmetry W_i -> c^{a_i} W_i of a model's outputs on a batch.

    Tensors invariant alone (one exponent), jointly (all of one sign) or against each other (query and key, a gain and
    the layer behind it). Equations of random reverse passes are collected at points nearby, ten more than are
    independent; their null space is brought to small integers, and each symmetry verified by scaling with c = 2.
    Runs in train mode on a copy in float64 (in the model's own precision if it must), with every eps as good as 0.

    Args:
        model: any module; left as it was.
        batch: (x, y), of which only x is used, or a mapping, as of Hugging Face, for model(**batch). Of rows of tokens
            the first 64 are used, if the model takes fewer.
        forward: from (model, x) to the output, a tensor or a structure of tensors. By default model(x), or model(**x)
            for a mapping, and of either its `logits` where it has such.
        seed: of cotangents and points.

    Returns:
        ScalingSymmetries.

    Raises:
        TypeError: model is not a module in Python, or batch neither a pair nor a mapping.
        ValueError: no trainable parameter; outputs that are not finite, have no gradient, or change by themselves.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = scaling_symmetries(net, (torch.randn(16, 4), None))
        >>> found.names
        ('0.weight', '1.weight', '1.bias', '3.weight', '3.bias')
        >>> found.exponents.tolist()
        [[1, 0, 0, 0, 0], [0, 1, 1, -1, 0]]

    Source: the identity is Euler's; conserved quantities as in Kunin et al. (2021), arXiv 2012.04728; the method is ours.

    """
    parameters = checked_parameters(model)
    names, (x, _) = list(parameters), inputs_and_targets(batch)
    dtype = finest(model, x, forward)
    with stand_ins(model, dtype), without_eps(model):
        evaluate = Evaluator(model, converted(x, dtype), seed, literals_without_eps(forward)).on_short_rows()
        with evaluate.moved(evaluate.nearby(names, seed)[0]):
            rows, outputs = reverse_rows(evaluate, names, seed, ROWS_A_POINT)
            refuse_strays(outputs, parameters)
            base = flat_output(outputs)
            floor = 10.0 * evaluate.rounding(base)
            while rows.spare(evaluate.eps) < 10:
                seed += 1
                rows = more_rows(evaluate, rows, seed)
            live = rows.sizes() > floor
            rounding = floor / np.median(rows.sizes()[live]) if live.any() else 1.0
            null, gap = _null_space((rows.radial / rows.sizes())[:, live], rounding)
            spanned = np.zeros((len(null), len(names)))
            spanned[:, live] = null / rows.sizes()[live]
            inert = np.eye(len(names), dtype=np.int64)[~live]
            candidates = [*inert, *_sparsest(_integers(_echelon(spanned)))]
            kept = [a for a in candidates if _verified(evaluate, a, rows, base, floor)]
    kept.sort(key=lambda a: (np.count_nonzero(a), *-np.abs(a)))
    exponents = np.array(kept, dtype=np.int64).reshape(-1, len(names))
    squares = np.array([float(as_real(p).double().square().sum()) for p in parameters.values()])
    idle, dimension = tuple(itertools.compress(names, ~live)), len(inert) + len(null)
    return ScalingSymmetries(tuple(names), exponents, idle, gap, exponents @ squares, dimension)


def _verified(evaluate: Evaluator, exponents: Integers, rows: Rows, base: Tensor, floor: float) -> bool:
    """Whether scaling with c = 2 leaves the outputs, up to rounding, at `base`."""
    powers = {name: a for name, a in zip(rows.names, exponents.tolist(), strict=True) if a}
    scaled = {name: evaluate.tensors[name].detach() * 2.0**a for name, a in powers.items()}
    random = float(np.linalg.norm(rows.sizes() * exponents))
    return evaluate.distance(scaled, base) <= max(EXACT * random, 3.0 * floor)


def _null_space(columns: FloatArray, rounding: float) -> tuple[FloatArray, float]:
    """Null vectors (k, n) of equations whose columns have size 1, and the gap below which a singular value is zero."""
    _, values, vectors = np.linalg.svd(columns, full_matrices=True)
    levels = np.r_[1.0, values / len(columns) ** 0.5].clip(min=TINY)
    seen = levels.clip(min=rounding)  # what lies below is no gap
    ratios = np.where(levels[1:] < 1e-3, seen[:-1] / seen[1:], 0.0)
    if ratios.max(initial=0.0) < 10.0:
        return vectors[:0], math.inf
    cut = int(ratios.argmax())
    return vectors[cut:], float(levels[cut] / levels[cut + 1])


def _echelon(rows: FloatArray) -> FloatArray:
    """The reduced row echelon form, the largest entry left being the next pivot: fractions, if any basis is."""
    rows = rows.copy()
    for i in range(len(rows)):
        at, pivot = divmod(int(np.abs(rows[i:]).argmax()), rows.shape[1])
        rows[[i, i + at]] = rows[[i + at, i]]
        rows[i] /= rows[i, pivot]
        others = np.arange(len(rows)) != i
        rows[others] -= np.outer(rows[others, pivot], rows[i])
    return rows


def _integers(rows: FloatArray) -> list[Integers]:
    """Multiples of the rows made of integers; a row that has none of small denominator is left out."""
    found = []
    for row in rows:
        fractions = [Fraction(float(v)).limit_denominator(6) for v in row]
        if max(abs(float(f) - v) for f, v in zip(fractions, row, strict=True)) < 1e-2:
            factor = math.lcm(*(f.denominator for f in fractions))
            found.append(np.array([int(f * factor) for f in fractions]))
    return found


def _sparsest(rows: list[Integers]) -> list[Integers]:
    """The same span, in vectors with sum >= 0 that no sum or difference of two makes sparser, smaller or later."""

    def cost(a: Integers) -> tuple[Any, ...]:
        return np.count_nonzero(a), np.abs(a).sum(), *np.abs(a)

    improved = True
    while improved:
        improved = False
        for i, j in itertools.permutations(range(len(rows)), 2):
            best = min((rows[i], rows[i] - rows[j], rows[i] + rows[j]), key=cost)
            improved |= best is not rows[i]
            rows[i] = best
    primitive = [a // np.gcd.reduce(a) for a in rows]
    return [-a if (a.sum() or a[a.nonzero()][0]) < 0 else a for a in primitive]
