"""Top eigenvalues of symmetric operators known by their products only, and how far to trust them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from normcore.checks import require_type


class NonFiniteError(ValueError):
    """A loss, an output or a product is NaN or infinite: that of a run that diverged, say."""


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
            raise ValueError(
                f"other must be of shape ({self.size},) or ({self.size}, k), got {tuple(other.shape)}"
            )
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
