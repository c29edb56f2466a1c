"""Search for sets of tensors that are scale-invariant only together.

Column i of R is the derivative of the outputs along W_i, R_i = d f(e^s W_i) / ds. A set is jointly invariant
when its columns sum to zero, so we look for 0/1 vectors d with R d = 0.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from normcore.invariance.probing import Evaluator

STEP = 3e-3
"""Of the central difference: truncation and float32 rounding both leave an error of about 1e-5."""

PENALTY = 1e-5
"""Picks the cheapest of several exact sets; errors of 1e-5 in R put 1e-10 into R'R, far below."""

RIDGE = 1e-10
"""Keeps R'R regular when a column enters that the chosen ones already span."""


def candidate_groups(evaluate: Evaluator, tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Sets of names, each a candidate for joint invariance that the caller must verify; sets of one are left out."""
    names = list(tensors)
    if len(names) < 2:
        return []
    columns = torch.stack([_radial_derivative(evaluate, tensors[name]) for name in names], dim=1).cpu()
    sizes = columns.norm(dim=0)
    units = columns / sizes.clamp_min(torch.finfo(columns.dtype).tiny)
    gram = units.T @ units
    found: list[list[str]] = []
    for seed in range(len(names)):
        if any(names[seed] in group for group in found) or sizes[seed] == 0:
            continue
        chosen = _sparse_null_vector(gram, seed) * sizes[seed] / sizes > 0.5
        group = [name for name, keep in zip(names, chosen.tolist(), strict=True) if keep]
        if len(group) > 1 and group not in found:
            found.append(group)
    return found


def _radial_derivative(evaluate: Evaluator, tensor: Tensor) -> Tensor:
    """The derivative of the outputs along the tensor, by a central difference."""
    ahead, behind = (evaluate.at([tensor], [tensor.detach() * (1 + s)]) for s in (STEP, -STEP))
    return (ahead - behind) / (2 * STEP)


def _sparse_null_vector(gram: Tensor, seed: int) -> Tensor:
    """Minimise d'Gd / 2 + PENALTY * sum(d) over d >= 0 with d[seed] = 1, by an active set.

    The columns have unit length, so that of two sets with the same effect the one with the fewest and largest parts
    is the cheaper; between equals the later tensor is.
    """
    n = len(gram)
    cost = PENALTY * (1.0 - 1e-2 * torch.arange(n, dtype=gram.dtype) / n)
    ridge = RIDGE * torch.eye(n, dtype=gram.dtype)
    d = torch.zeros(n, dtype=gram.dtype)
    d[seed] = 1.0
    active: list[int] = []
    for _ in range(4 * n):
        push = -(gram @ d) - cost
        push[[seed, *active]] = -1.0
        if float(push.max()) <= 1e-2 * PENALTY:
            break
        active.append(int(push.argmax()))
        while active:
            target = torch.linalg.solve(
                (gram + ridge)[active][:, active], -(gram[active, seed] + cost[active])
            )
            here = d[active]
            if bool((target > 0).all()):
                d[active] = target
                break
            shares = torch.where(target <= 0, here / (here - target).clamp_min(1e-300), 1.0)
            d[active] = here + shares.min() * (target - here)
            leaving = int(shares.argmin())
            d[active[leaving]] = 0.0
            del active[leaving]
    return d
