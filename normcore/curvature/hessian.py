"""The Hessian of a loss, in the mode the model is in: its largest eigenvalues (the first is the sharpness), its trace."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from normcore.checks import NonFiniteError, checked, checked_count, checked_number, understood
from normcore.curvature.hessian_operator import HessianOperator, Loss, require_problem
from normcore.curvature.operator import EigenResult, top_eigenpair, top_eigenpairs


def hessian_top_eigenvalue(
    model: nn.Module,
    loss_fn: Loss,
    batch: tuple[Any, Any],
    method: str = "auto",
    *,
    start: Tensor | None = None,
    tol: float | None = None,
    max_matvecs: int = 200,
    chunk_size: int | None = None,
    seed: int = 0,
) -> EigenResult:
    """Find the largest eigenvalue of the Hessian of a loss in all trainable parameters: the sharpness.

    The loss is loss_fn(model(x), y). Gradient descent with rate eta is unstable along its eigenvector where
    eta*value > 2. The model is evaluated in the modes it is in (a BatchNorm in train mode with its batch
    statistics); weights, gradients, running statistics, modes and random state stay as they are.

    Args:
        model: any module, called as model(x).
        loss_fn: scalar loss of (model(x), y).
        batch: (x, y).
        method: "double_backward" (keeps one graph), "jvp_grad" (less memory), "finite_difference" (first-order
            operations only), or "auto": double backward where the model allows it.
        start: flat vector of an earlier result, to start from.
        tol: bound on the relative residual; 1e-6 in float64, 1e-4 otherwise.
        max_matvecs: Hessian products allowed.
        chunk_size: samples held in memory at once. Needs a loss that is a sum or mean over samples, weighted,
            masked or plain, and samples that do not interact in the model (no batch statistics); both are
            checked. Products then cost one gradient more.
        seed: of the start vector, and of dropout.

    Returns:
        EigenResult; `vector` is flat, in the order of `model.named_parameters()` (trainable ones).

    Raises:
        ValueError: no trainable parameter, a loss that is not one finite number, an unfit chunk_size.
        TypeError: batch is not a pair, or an argument of another type.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1, bias=False).double()
        >>> x, y = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double(), torch.zeros(2, 1).double()
        >>> result = hessian_top_eigenvalue(model, nn.functional.mse_loss, (x, y))
        >>> round(result.value, 9), result.converged  # X^T X with nn.MSELoss: 9
        (9.0, True)

    """
    operator = HessianOperator(model, loss_fn, batch, method, chunk_size=chunk_size, seed=seed)
    found = top_eigenpair(operator, start=start, tol=tol, max_matvecs=max_matvecs, seed=seed)
    return operator.recheck(found, tol)


def hessian_eigenvalues(
    model: nn.Module,
    loss_fn: Loss,
    batch: tuple[Any, Any],
    k: int,
    method: str = "auto",
    *,
    tol: float | None = None,
    max_matvecs: int = 200,
    chunk_size: int | None = None,
    seed: int = 0,
) -> list[EigenResult]:
    """Find the k largest eigenvalues of the Hessian of a loss, multiple ones as often as they occur.

    Gradient descent with rate eta is unstable along as many directions as have eta*value > 2.

    Args:
        k: how many, at most the number of trainable parameters.
        tol: bound on each relative residual.
        max_matvecs: Hessian products allowed for each.

    The other arguments are those of `hessian_top_eigenvalue`, and so are the errors.

    Returns:
        k EigenResults in descending order, with orthonormal vectors. Where one has converged=False a larger
        eigenvalue may have been missed: those after it say so too.

    Raises:
        ValueError: k is larger than the number of parameters.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 2, bias=False).double()
        >>> x, y = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double(), torch.zeros(2, 2).double()
        >>> found = hessian_eigenvalues(model, lambda f, y: ((f - y) ** 2).sum() / 2, (x, y), 3)
        >>> [round(result.value, 6) for result in found]  # X^T X, once for each output
        [9.0, 9.0, 1.0]

    """
    operator = HessianOperator(model, loss_fn, batch, method, chunk_size=chunk_size, seed=seed)
    found = top_eigenpairs(operator, k, tol=tol, max_matvecs=max_matvecs, seed=seed)
    return [operator.recheck(result, tol) for result in found]


def hessian_trace(
    model: nn.Module,
    loss_fn: Loss,
    batch: tuple[Any, Any],
    method: str = "auto",
    *,
    matvecs: int = 100,
    chunk_size: int | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Estimate the trace of the Hessian of a loss, the sum of all its eigenvalues.

    The mean of v^T H v over random signs v (Hutchinson); where there are no more parameters than `matvecs`, the
    diagonal, which is exact.

    Args:
        matvecs: Hessian products, >= 2; the error falls as one over their root.

    The other arguments are those of `hessian_top_eigenvalue`, and so are the errors.

    Returns:
        (trace, its standard error): 0 for the diagonal, but for the error of finite differences, which is added.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1, bias=False).double()
        >>> x, y = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double(), torch.zeros(2, 1).double()
        >>> hessian_trace(model, lambda f, y: ((f - y) ** 2).sum() / 2, (x, y))  # 9 + 1
        (10.0, 0.0)

    Source: Hutchinson (1989).

    """
    checked_count("matvecs", matvecs, least=2)
    operator = HessianOperator(model, loss_fn, batch, method, chunk_size=chunk_size, seed=seed)
    if operator.size <= matvecs:
        trace, noise = float((operator @ torch.eye(operator.size)).double().trace()), 0.0
    else:
        generator, terms = torch.Generator().manual_seed(seed), []
        for _ in range(matvecs):
            signs = 2.0 * torch.randint(2, (operator.size,), generator=generator) - 1.0
            product = operator @ signs
            terms.append((signs.to(product) * product).double().sum())
        each = torch.stack(terms)
        trace, noise = float(each.mean()), float(each.std()) / matvecs**0.5
    return trace, noise + operator.error * abs(trace)


FRESH = 30
"""Products allowed to a reading from scratch."""


class SharpnessMonitor:
    """Reads the top Hessian eigenvalue of a model as it trains, starting from the last eigenvector.

    `monitor(model)` returns the value and keeps the EigenResult in `last`. The first reading, every `refresh`-th,
    and one for which other parameters are trainable look afresh, with a random part in the start, so that an
    eigenvalue that overtakes the one followed is found; those between take `matvecs` products. A value is at most
    the true one, up to rounding; `last.residual` bounds its distance to an eigenvalue. Where the loss or a product is
    not finite, in a run that diverged, the value is nan. It can be used as a probe in training: it has a state_dict.

    Args:
        loss_fn: scalar loss of (model(x), y).
        batch: (x, y), fixed.
        matvecs: Hessian products a reading, >= 1.
        refresh: readings from one fresh look to the next, >= 1.
        tol: relative residual at which a reading stops early and counts as converged.
        method: as in `hessian_top_eigenvalue`, and so is chunk_size.

    Raises:
        ValueError: matvecs or refresh < 1, tol <= 0.
        TypeError: an argument of another type.

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
        loss_fn: Loss,
        batch: tuple[Any, Any],
        *,
        matvecs: int = 2,
        refresh: int = 20,
        tol: float = 1e-2,
        method: str = "auto",
        chunk_size: int | None = None,
    ) -> None:
        require_problem(loss_fn, batch, method, chunk_size)
        self.loss_fn, self.batch, self.method, self.chunk_size = loss_fn, batch, method, chunk_size
        self.matvecs, self.refresh = checked_count("matvecs", matvecs), checked_count("refresh", refresh)
        self.tol = checked_number("tol", tol, above=0.0)
        self.readings = 0
        self.last: EigenResult | None = None
        self._vector: Tensor | None = None

    def __call__(self, model: nn.Module) -> float:
        """Read the sharpness of the model as it stands."""
        try:
            self.last = self._read(model)
            self._vector = self.last.vector
        except NonFiniteError:
            self._vector = None
            self.last = EigenResult(math.nan, torch.empty(0), math.nan, 0, False, self.method)
        self.readings += 1
        return self.last.value

    def _read(self, model: nn.Module) -> EigenResult:
        operator = HessianOperator(model, self.loss_fn, self.batch, self.method, chunk_size=self.chunk_size)
        start = self._vector if self._vector is not None and len(self._vector) == operator.size else None
        fresh = start is None or self.readings % self.refresh == 0
        options: dict[str, Any] = {"max_matvecs": FRESH if fresh else self.matvecs}
        options |= {} if fresh else {"share": 0.0}
        found = top_eigenpair(operator, start=start, tol=self.tol, seed=self.readings, **options)
        return replace(found, method=operator.method)

    def state_dict(self) -> dict[str, Any]:
        """Eigenvector and count."""
        return {"vector": self._vector, "readings": self.readings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another monitor stopped."""
        with understood(state, "the state_dict of a SharpnessMonitor"):
            vector, readings = state["vector"], checked_count("readings", state["readings"], least=0)
            if vector is not None:
                checked("vector", vector.cpu())
        self._vector, self.readings = vector, readings
