"""The sharpness along a run, at the price of one or two Hessian products a reading."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from normcore.checks import checked_count
from normcore.hessian_operator import HessianOperator
from normcore.lanczos import top_eigenpair
from normcore.spectrum import EigenResult

FULL = 30
"""Products allowed to a reading from scratch."""


class SharpnessMonitor:
    """Reads the top Hessian eigenvalue of a model as it trains, starting from the last eigenvector.

    `monitor(model)` returns the value and keeps the EigenResult in `last`. The first reading and every
    `refresh`-th look afresh, with a random part in the start, so that an eigenvalue that overtakes the one followed is
    found; those between take `products` products. A value is at most the true one, up to rounding; `last.residual`
    bounds its distance to an eigenvalue. It can be used as a probe in training: it has a state_dict.

    Args:
        loss_fn: scalar loss of (model(x), y).
        batch: (x, y), fixed.
        products: Hessian products a reading, >= 1.
        refresh: readings from one fresh look to the next, >= 1.
        tol: relative residual at which a reading stops early and counts as converged.
        method: as in `hessian_top_eigenvalue`.
        chunk_size: as in `hessian_top_eigenvalue`.

    Raises:
        ValueError: products or refresh < 1, tol <= 0.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1, bias=False).double()
        >>> batch = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double(), torch.zeros(2, 1).double()
        >>> monitor = SharpnessMonitor(nn.functional.mse_loss, batch)
        >>> round(monitor(model), 6), monitor.last.converged
        (9.0, True)

    """

    def __init__(
        self,
        loss_fn: Callable[[Any, Any], Tensor],
        batch: tuple[Any, Any],
        *,
        products: int = 2,
        refresh: int = 20,
        tol: float = 1e-2,
        method: str = "auto",
        chunk_size: int | None = None,
    ) -> None:
        """Hold loss and batch."""
        self.loss_fn, self.batch = loss_fn, batch
        self.products, self.refresh = checked_count("products", products), checked_count("refresh", refresh)
        if not tol > 0:
            raise ValueError(f"tol must be > 0, got {tol!r}")
        self.tol, self.method, self.chunk_size = tol, method, chunk_size
        self.readings = 0
        self.last: EigenResult | None = None
        self._vector: Tensor | None = None

    def __call__(self, model: nn.Module) -> float:
        """Read the sharpness of the model as it stands."""
        operator = HessianOperator(model, self.loss_fn, self.batch, self.method, chunk_size=self.chunk_size)
        fresh = self._vector is None or self.readings % self.refresh == 0
        options: dict[str, Any] = (
            {"max_matvecs": FULL} if fresh else {"max_matvecs": self.products, "share": 0.0}
        )
        self.last = top_eigenpair(operator, start=self._vector, tol=self.tol, seed=self.readings, **options)
        self._vector = self.last.vector
        self.readings += 1
        return self.last.value

    def state_dict(self) -> dict[str, Any]:
        """Eigenvector and count."""
        return {"vector": self._vector, "readings": self.readings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another monitor stopped."""
        missing = {"vector", "readings"} - set(state)
        if missing:
            raise ValueError(f"state must have the keys vector and readings, got none for {sorted(missing)}")
        self._vector, self.readings = state["vector"], int(state["readings"])
