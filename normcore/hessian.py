"""The top eigenvalue of the Hessian of a loss: the sharpness, in the mode the model is in."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from normcore.hessian_operator import HessianOperator
from normcore.lanczos import top_eigenpair
from normcore.spectrum import EigenResult, default_tolerance


def hessian_top_eigenvalue(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
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
        chunk_size: samples held in memory at once; needs a loss that is a mean over samples and no batch
            statistics, both of which are checked. Products then cost one gradient more.
        seed: of the start vector, and of dropout.

    Returns:
        EigenResult; `vector` is flat, in the order of `model.named_parameters()` (trainable ones).

    Raises:
        ValueError: no trainable parameter, a loss that is not one finite number, an unfit chunk_size.
        TypeError: batch is not a pair.

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
    operator.recheck(found.vector)
    residual = max(found.residual, operator.error)
    limit = tol if tol is not None else default_tolerance(operator.dtype)
    trusted = found.converged and residual <= limit
    return EigenResult(found.value, found.vector, residual, found.matvecs, trusted, operator.method)
