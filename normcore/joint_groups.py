"""Search for sets of tensors that are scale-invariant only together.

Column i of R is the derivative of the outputs along W_i, R_i = d f(e^s W_i) / ds. A set is jointly invariant when its columns sum to zero, so we look for 0/1 vectors d with R d = 0.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from normcore.evaluation import Evaluator

STEP = 1e-2
"""Of the central difference: its error, 1e-4 relative, is far below the 1/2 at which entries are rounded."""

SWEEPS = 400
"""Of coordinate descent; a few hundred unknowns converge in fewer."""


def candidate_groups(evaluate: Evaluator, tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Sets of names, each a candidate for joint invariance that the caller must verify; sets of one are left out."""
    names = list(tensors)
    if len(names) < 2:
        return []
    columns = torch.stack([_radial_derivative(evaluate, tensors[name]) for name in names], dim=1)
    gram = columns.T @ columns
    found: list[list[str]] = []
    for seed in range(len(names)):
        if any(names[seed] in group for group in found) or gram[seed, seed] == 0:
            continue
        chosen = _sparse_null_vector(gram, seed) > 0.5
        group = [name for name, keep in zip(names, chosen.tolist(), strict=True) if keep]
        if len(group) > 1 and group not in found:
            found.append(group)
    return found


def _radial_derivative(evaluate: Evaluator, tensor: Tensor) -> Tensor:
    """The derivative of the outputs along the tensor, by a central difference."""
    ahead, behind = (evaluate.at([tensor], [tensor.detach() * (1 + s)]) for s in (STEP, -STEP))
    return (ahead - behind) / (2 * STEP)


def _sparse_null_vector(gram: Tensor, seed: int) -> Tensor:
    """Minimise d'Gd / 2 + penalty * sum(d) over 0 <= d <= 1 with d[seed] = 1, by coordinate descent."""
    d = torch.zeros(len(gram), dtype=gram.dtype)
    d[seed] = 1.0
    penalty = 1e-4 * gram.diagonal().mean()
    for _ in range(SWEEPS):
        before = d.clone()
        for i in range(len(gram)):
            if i != seed and gram[i, i] > 0:
                slope = gram[i] @ d - gram[i, i] * d[i] + penalty
                d[i] = (-slope / gram[i, i]).clamp(0.0, 1.0)
        if float((d - before).abs().max()) < 1e-6:
            break
    return d
