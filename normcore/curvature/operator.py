"""Top eigenvalues of symmetric operators known by their products only, by Lanczos, and how far to trust them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from normcore.checks import NonFiniteError, checked_count, checked_number, require_type

SHARE = 0.3
"""Size of the random part of a warm start: a start along an eigenvector that is no longer the top must not stay."""

ASYMMETRY = 10.0
"""An operator counts as symmetric while its defect is below this many tolerances."""

KEPT = 4
"""Ritz vectors kept at a restart."""


@dataclass(frozen=True, eq=False)
class EigenResult:
    """The largest (algebraic) eigenvalue of a symmetric operator, or the largest of those left.

    `value`, its unit `vector`, `residual` = |A v - value v| / |value|, the number of products `matvecs`, whether
    it `converged`, and the `method` that made it. An eigenvalue lies within residual*|value| of `value`;
    `converged` says that this is below the tolerance and that the operator was found symmetric.
    """

    value: float
    vector: Tensor
    residual: float
    matvecs: int
    converged: bool
    method: str = "lanczos"

    def __float__(self) -> float:
        return self.value


class SymmetricOperator:
    """A symmetric linear operator on flat vectors of a given size, dtype and device; counts its products."""

    def __init__(
        self, apply: Callable[[Tensor], Tensor], size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._apply, self.size, self.dtype, self.device = apply, size, dtype, device
        self.matvecs = 0

    @torch.inference_mode(False)  # which also allows gradients, wherever the call stands
    def __matmul__(self, other: Tensor) -> Tensor:
        """The product with a vector (size,), or with each column of a matrix (size, k)."""
        require_type("other", other, Tensor, "a tensor")
        if other.dim() == 2 and other.shape[0] == self.size:
            return torch.stack([self @ column for column in other.unbind(1)], dim=1)
        if other.shape != (self.size,):
            need = f"of shape ({self.size},) or ({self.size}, k)"
            raise ValueError(f"other must be {need}, got {tuple(other.shape)}")
        self.matvecs += 1
        vector = other.detach().to(self.device, self.dtype)
        return self._apply(vector.clone() if vector.is_inference() else vector).detach()


def default_tolerance(dtype: torch.dtype) -> float:
    """The relative residual asked for by default: 1e-6 in float64, 1e-4 in narrower types.

    The error of the value is at most the residual and typically its square, over the relative gap.
    """
    return 1e-6 if dtype == torch.float64 else 1e-4


def usable(values: Any) -> Any:
    """The same with copies in place of tensors that were made in inference mode, which autograd cannot use."""
    return tree_map_only(Tensor, lambda t: t.clone() if t.is_inference() else t, values)


def top_eigenpair(
    operator: SymmetricOperator,
    *,
    start: Tensor | None = None,
    tol: float | None = None,
    max_matvecs: int = 200,
    basis_size: int = 40,
    seed: int = 0,
    share: float = SHARE,
    known: Sequence[EigenResult] = (),
) -> EigenResult:
    """Find the largest eigenvalue of a symmetric operator by Lanczos.

    Every new vector is made orthogonal to all before it, twice; the projected matrix is kept in full, so that
    entries which symmetry says are equal are compared. When `basis_size` vectors are held the best four
    Ritz vectors are kept and the iteration goes on (thick restart). Where the Krylov space is exhausted the
    result is exact; where the products run out or the operator is not symmetric it has converged=False.

    A start that is given gets a random part of size `share`, so that a former eigenvector does not hide the present
    one; with share 0 the value is only known to be an eigenvalue. The search is orthogonal to the pairs that are
    `known`. A start of the wrong size or a product that is not finite is a ValueError.

    Source: Wu & Simon (2000), thick-restart Lanczos.

    """
    tol = default_tolerance(operator.dtype) if tol is None else checked_number("tol", tol, above=0.0)
    checked_count("max_matvecs", max_matvecs)
    capacity = min(checked_count("basis_size", basis_size, least=8), max_matvecs, operator.size - len(known))
    krylov = _Krylov(operator, _start_vector(operator, start, seed, share), capacity, known)
    while True:
        krylov.expand()
        values, vectors = torch.linalg.eigh(krylov.projected())
        value, weights, largest = float(values[-1]), vectors[:, -1], float(values.abs().max())
        scale = max(abs(value), largest * torch.finfo(operator.dtype).eps)
        residual = krylov.beta * abs(float(weights[-1])) / scale if scale > 0 else 0.0
        symmetric = krylov.asymmetry <= ASYMMETRY * tol * max(largest, krylov.beta, krylov.scale)
        done = residual <= tol or krylov.exhausted
        if done or krylov.matvecs >= max_matvecs:
            vector = krylov.combine(weights[:, None])[0]
            return EigenResult(value, vector, residual, krylov.matvecs, done and symmetric)
        if krylov.full:
            krylov.restart(values, vectors)


def top_eigenpairs(
    operator: SymmetricOperator, k: int, *, tol: float | None = None, max_matvecs: int = 200, seed: int = 0
) -> list[EigenResult]:
    """Find the k largest eigenvalues, in descending order, multiple ones as often as they occur.

    One after the other, each orthogonal to those before it and from a random start of its own: one Krylov space
    would hold a single vector of a multiple eigenvalue. In the end the operator is diagonalised in their span,
    with one more product each, so that an error of one is not an error of the next. max_matvecs is for each.
    """
    tol = default_tolerance(operator.dtype) if tol is None else checked_number("tol", tol, above=0.0)
    if checked_count("k", k) > operator.size:
        raise ValueError(f"k must be <= {operator.size}, the number of all eigenvalues, got {k}")
    found: list[EigenResult] = []
    for i in range(k):
        found.append(top_eigenpair(operator, tol=tol, max_matvecs=max_matvecs, seed=seed + i, known=found))
    basis = torch.stack([result.vector for result in found])
    products = (operator @ basis.T).T
    projected = (basis @ products.T).double().cpu()
    values, weights = torch.linalg.eigh((projected + projected.T) / 2)
    values, weights = values.flip(0), weights.flip(1).to(basis)
    vectors, images = weights.T @ basis, weights.T @ products
    floor = _rounding(operator.dtype, float(values.abs().max()))
    results = []
    for i, value in enumerate(values.tolist()):
        size = float((images[i] - value * vectors[i]).norm())
        residual = size / abs(value) if size > floor else 0.0
        sure = residual <= tol and all(result.converged for result in found[: i + 1])
        results.append(EigenResult(value, vectors[i], residual, found[i].matvecs + 1, sure))
    return results


def _rounding(dtype: torch.dtype, size: float) -> float:
    """What rounding leaves of a vector of this size that should be 0."""
    return 10 * torch.finfo(dtype).eps * size


def _start_vector(operator: SymmetricOperator, start: Tensor | None, seed: int, share: float) -> Tensor:
    """A unit vector: random, or the given one with a random part."""
    generator = torch.Generator().manual_seed(checked_count("seed", seed, least=0))
    random = torch.randn(operator.size, generator=generator, dtype=torch.float64)
    random = random.div_(random.norm()).to(operator.device, operator.dtype)
    if start is None:
        return random
    require_type("start", start, Tensor, "a tensor")
    if start.numel() != operator.size or not bool(start.isfinite().all()) or not bool(start.any()):
        need = f"{operator.size} finite numbers, not all 0"
        raise ValueError(f"start must hold {need}, got shape {tuple(start.shape)}")
    given = start.detach().flatten().to(operator.device, operator.dtype)
    mixed: Tensor = given / given.norm() + share * random
    return mixed.div_(mixed.norm())


class _Krylov:
    """An orthonormal basis, the projected matrix, and the vector to add next, all orthogonal to what is known."""

    def __init__(
        self, operator: SymmetricOperator, start: Tensor, capacity: int, known: Sequence[EigenResult]
    ) -> None:
        self.operator, self.capacity, self.known = operator, capacity, len(known)
        self.matvecs, self.used, self.beta, self.asymmetry, self.exhausted = 0, 0, 0.0, 0.0, False
        self.scale = max((abs(result.value) for result in known), default=0.0)
        self.rows = start.new_empty(self.known + capacity, operator.size)
        self.basis = self.rows[self.known :]
        for row, result in zip(self.rows, known, strict=False):
            row.copy_(result.vector.flatten())
        self.matrix = torch.zeros(capacity, capacity, dtype=torch.float64)
        if known:
            start = self._clear(self._clear(start, self.known)[0], self.known)[0]
            start = start / start.norm()
        self.ahead = start

    @property
    def full(self) -> bool:
        return self.used == self.capacity

    def projected(self) -> Tensor:
        """The operator in the basis."""
        return self.matrix[: self.used, : self.used]

    def _clear(self, vector: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """The vector without its parts along the first rows, and these parts."""
        held = self.rows[:rows]
        parts = held @ vector
        return vector - parts @ held, parts

    def expand(self) -> None:
        """Add the next vector, with one product."""
        k = self.used
        self.basis[k] = self.ahead
        product = self.operator @ self.basis[k]
        self.matvecs += 1
        size = float(product.norm())
        if not size < float("inf"):
            raise NonFiniteError("the product of the operator must be finite, got NaN or infinity")
        # Rounding leaves of each subtracted part a trace of relative size eps. Near convergence almost all of the
        # product is subtracted, and the trace is no longer small beside the rest: a second pass removes it.
        rest, parts = self._clear(product, self.known + k + 1)
        rest, more = self._clear(rest, self.known + k + 1)
        column = (parts + more)[self.known :].double().cpu()
        # By symmetry this column repeats what the rows before it say. A product that is wrong somewhere (a gradient
        # that was cut, the noise of a difference) does not: a witness that costs nothing.
        if k:
            self.asymmetry = max(self.asymmetry, float((self.matrix[k, :k] - column[:k]).abs().max()))
        self.matrix[k, : k + 1] = self.matrix[: k + 1, k] = column
        self.used = k + 1
        self.beta = float(rest.norm())
        floor = _rounding(rest.dtype, max(size, float(self.projected().abs().max()), self.scale))
        self.exhausted = self.beta <= floor or self.known + self.used == self.operator.size
        if self.exhausted:
            self.beta = 0.0
            return
        self.ahead = rest / self.beta
        if not self.full:
            self.matrix[k + 1, k] = self.matrix[k, k + 1] = self.beta

    def combine(self, weights: Tensor) -> Tensor:
        """Vectors from their coefficients in the basis (used, j), as rows."""
        return weights.T.to(self.basis) @ self.basis[: self.used]

    def restart(self, values: Tensor, vectors: Tensor) -> None:
        """Keep the best Ritz vectors and the vector ahead.

        For every Ritz vector r, A r = value r + (beta times the last weight of r) ahead: all residuals lie along
        the one vector ahead. So the kept ones with it are again a basis in which the operator has a known matrix,
        diagonal but for the column of `ahead`, whose product comes next.
        """
        kept = self.combine(vectors[:, -KEPT:])
        coupling = self.beta * vectors[-1, -KEPT:]
        self.basis[:KEPT] = kept
        self.matrix.zero_()
        self.matrix[range(KEPT), range(KEPT)] = values[-KEPT:]
        self.matrix[KEPT, :KEPT] = self.matrix[:KEPT, KEPT] = coupling
        self.used = KEPT
