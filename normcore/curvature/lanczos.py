"""Lanczos with full reorthogonalisation and thick restarts, for the largest eigenvalue."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from normcore.checks import checked_count
from normcore.curvature.operator import EigenResult, SymmetricOperator, default_tolerance

SHARE = 0.3
"""Size of the random part of a warm start: a start along an eigenvector that is no longer the top must not stay."""

ASYMMETRY = 10.0
"""An operator counts as symmetric while its defect is below this many tolerances."""

KEPT = 4
"""Ritz vectors kept at a restart."""


def top_eigenpair(
    operator: SymmetricOperator,
    *,
    start: Tensor | None = None,
    tol: float | None = None,
    max_matvecs: int = 200,
    basis_size: int = 40,
    seed: int = 0,
    share: float = SHARE,
) -> EigenResult:
    """Find the largest eigenvalue of a symmetric operator by Lanczos.

    Every new vector is made orthogonal to all before it, twice; the projected matrix is kept in full, so that
    entries which symmetry says are equal are compared. When `basis_size` vectors are held the best four
    Ritz vectors are kept and the iteration goes on (thick restart). Where the Krylov space is exhausted the
    result is exact.

    Args:
        operator: the operator.
        start: flat start vector; a random one by default. A given start gets a random part, so that a former
            eigenvector does not hide the present one.
        tol: bound on the relative residual; 1e-6 in float64, 1e-4 otherwise.
        max_matvecs: products allowed.
        basis_size: vectors held, >= 8.
        seed: of the random start.
        share: size of the random part of a given start; with 0 the value is only known to be an eigenvalue.

    Returns:
        EigenResult, with converged=False where the products ran out or the operator is not symmetric.

    Raises:
        ValueError: start of the wrong size or not finite, tol <= 0, or a product that is not finite.

    Example:
        >>> matrix = torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64))
        >>> operator = SymmetricOperator(matrix.mv, 100, matrix.dtype, matrix.device)
        >>> result = top_eigenpair(operator)
        >>> result.converged, round(result.value, 6)
        (True, 100.0)

    Source: Wu & Simon (2000), thick-restart Lanczos.

    """
    tol = default_tolerance(operator.dtype) if tol is None else float(tol)
    if not tol > 0:
        raise ValueError(f"tol must be > 0, got {tol!r}")
    checked_count("max_matvecs", max_matvecs)
    checked_count("basis_size", basis_size, least=8)
    krylov = _Krylov(operator, min(basis_size, max_matvecs, operator.size))
    krylov.begin(_start_vector(operator, start, seed, share))
    while True:
        krylov.expand()
        values, vectors = torch.linalg.eigh(krylov.projected())
        value, weights = float(values[-1]), vectors[:, -1]
        scale = max(abs(value), float(values.abs().max()) * torch.finfo(operator.dtype).eps)
        residual = krylov.beta * abs(float(weights[-1])) / scale if scale > 0 else 0.0
        symmetric = krylov.asymmetry <= ASYMMETRY * tol * max(float(values.abs().max()), krylov.beta)
        done = residual <= tol or krylov.exhausted
        if done or krylov.matvecs >= max_matvecs:
            vector = krylov.combine(weights[:, None])[0]
            return EigenResult(value, vector, residual, krylov.matvecs, done and symmetric)
        if krylov.full:
            krylov.restart(values, vectors)


def _start_vector(operator: SymmetricOperator, start: Tensor | None, seed: int, share: float) -> Tensor:
    """A unit vector: random, or the given one with a random part."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(operator.size, generator=generator, dtype=torch.float64)
    random = random.div_(random.norm()).to(operator.device, operator.dtype)
    if start is None:
        return random
    if start.numel() != operator.size or not bool(start.isfinite().all()) or not bool(start.any()):
        raise ValueError(
            f"start must hold {operator.size} finite numbers, not all 0, got shape {tuple(start.shape)}"
        )
    given = start.detach().flatten().to(operator.device, operator.dtype)
    mixed: Tensor = given / given.norm() + share * random
    return mixed.div_(mixed.norm())


@dataclass
class _Krylov:
    """An orthonormal basis, the projected matrix, and the vector to add next."""

    operator: SymmetricOperator
    capacity: int
    matvecs: int = 0
    beta: float = 0.0
    asymmetry: float = 0.0
    exhausted: bool = False
    used: int = 0
    basis: Tensor = field(init=False)
    matrix: Tensor = field(init=False)
    ahead: Tensor = field(init=False)

    def begin(self, start: Tensor) -> None:
        """Start from a unit vector."""
        self.basis = start.new_empty(self.capacity, self.operator.size)
        self.matrix = torch.zeros(self.capacity, self.capacity, dtype=torch.float64)
        self.ahead = start

    @property
    def full(self) -> bool:
        """Whether no vector can be added."""
        return self.used == self.capacity

    def projected(self) -> Tensor:
        """The operator in the basis."""
        return self.matrix[: self.used, : self.used]

    def expand(self) -> None:
        """Add the next vector, with one product."""
        k = self.used
        self.basis[k] = self.ahead
        product = self.operator @ self.basis[k]
        self.matvecs += 1
        held = self.basis[: k + 1]
        column = held @ product
        size = float(product.norm())
        if size != size or size == float("inf"):
            raise ValueError("the product of the operator must be finite, got NaN or infinity")
        product = product - column @ held
        again = held @ product
        product = product - again @ held
        column = (column + again).double().cpu()
        if k:
            defect = float((self.matrix[k, :k] - column[:k]).abs().max())
            self.asymmetry = max(self.asymmetry, defect)
        self.matrix[k, : k + 1] = self.matrix[: k + 1, k] = column
        self.used = k + 1
        self.beta = float(product.norm())
        floor = 10 * torch.finfo(product.dtype).eps * max(size, float(self.projected().abs().max()))
        self.exhausted = self.beta <= floor or self.used == self.operator.size
        if self.exhausted:
            self.beta = 0.0
            return
        self.ahead = product / self.beta
        if not self.full:
            self.matrix[k + 1, k] = self.matrix[k, k + 1] = self.beta

    def combine(self, weights: Tensor) -> Tensor:
        """Vectors from their coefficients in the basis (used, j), as rows."""
        return weights.T.to(self.basis) @ self.basis[: self.used]

    def restart(self, values: Tensor, vectors: Tensor) -> None:
        """Keep the best Ritz vectors and the vector ahead."""
        kept = self.combine(vectors[:, -KEPT:])
        coupling = self.beta * vectors[-1, -KEPT:]
        self.basis[:KEPT] = kept
        self.matrix.zero_()
        self.matrix[range(KEPT), range(KEPT)] = values[-KEPT:]
        self.matrix[KEPT, :KEPT] = self.matrix[:KEPT, KEPT] = coupling
        self.used = KEPT
