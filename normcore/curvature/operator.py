"""Top eigenvalues of symmetric operators known by their products only, and how far to trust them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class EigenResult:
    """The largest (algebraic) eigenvalue of a symmetric operator.

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

    @property
    def shape(self) -> tuple[int, int]:
        """(size, size)."""
        return self.size, self.size

    def __matmul__(self, other: Tensor) -> Tensor:
        """The product with a vector (size,), or with each column of a matrix (size, k)."""
        if other.dim() == 2 and other.shape[0] == self.size:
            return torch.stack([self @ column for column in other.unbind(1)], dim=1)
        if other.shape != (self.size,):
            raise ValueError(
                f"other must be of shape ({self.size},) or ({self.size}, k), got {tuple(other.shape)}"
            )
        self.matvecs += 1
        return self._apply(other.to(self.device, self.dtype)).detach()

    def to_scipy(self) -> Any:
        """The same as a scipy.sparse.linalg.LinearOperator, for eigsh, cg and the like (needs scipy)."""
        from importlib import import_module

        linear_operator = import_module("scipy.sparse.linalg").LinearOperator

        def product(vector: Any) -> Any:
            return (self @ torch.as_tensor(vector.ravel().copy())).cpu().numpy()

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return linear_operator(self.shape, matvec=product, rmatvec=product, dtype=dtype)


def default_tolerance(dtype: torch.dtype) -> float:
    """The relative residual asked for by default: 1e-6 in float64, 1e-4 in narrower types.

    The error of the value is at most the residual and typically its square, over the relative gap.
    """
    return 1e-6 if dtype == torch.float64 else 1e-4
