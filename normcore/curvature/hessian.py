"""The top eigenvalue of the Hessian of a loss: the sharpness, in the mode the model is in."""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from normcore.checks import checked_count
from normcore.curvature.lanczos import top_eigenpair
from normcore.curvature.operator import EigenResult, SymmetricOperator, default_tolerance
from normcore.curvature.snapshot import Snapshot, derivable_once, flatten, grad

METHODS = ("auto", "double_backward", "jvp_grad", "finite_difference")


class HessianOperator(SymmetricOperator):
    """The Hessian at the parameters the model has now; `@` multiplies, `.to_scipy()` interoperates.

    It holds copies: the model may train on. Arguments as in `hessian_top_eigenvalue`. `error` is the largest
    relative error estimate of a product so far (finite differences only, otherwise 0).
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        batch: tuple[Any, Any],
        method: str = "auto",
        *,
        chunk_size: int | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare the products; with method "auto" the first way that works is taken."""
        if method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {method!r}")
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"batch must be a pair (x, y), got {type(batch).__name__}")
        self.snapshot, self.loss_fn, self.error = Snapshot(model, seed), loss_fn, 0.0
        self._chunks = [(1.0, batch[0], batch[1])] if chunk_size is None else self._split(batch, chunk_size)
        super().__init__(self._product, self.snapshot.size, self.snapshot.dtype, self.snapshot.device)
        self._kept: tuple[Tensor, ...] | None = None
        self._step = 0.0
        self._may_switch = method == "auto"
        self.method = "double_backward" if method == "auto" else method

    def _split(self, batch: tuple[Any, Any], chunk_size: int) -> list[tuple[float, Any, Any]]:
        """The batch in chunks with their shares, after checking that the loss is their weighted mean."""
        checked_count("chunk_size", chunk_size)
        x, y = batch
        if not isinstance(x, Tensor) or not isinstance(y, Tensor) or len(x) != len(y):
            raise TypeError("batch must be two tensors of one length when chunk_size is given")
        if self.snapshot.couples_samples():
            raise ValueError(
                f"chunk_size must be None while a BatchNorm uses batch statistics, got {chunk_size}: "
                "the loss is no mean over chunks"
            )
        pieces = list(zip(x.split(chunk_size), y.split(chunk_size), strict=True))
        chunks = [(len(a) / len(x), a, b) for a, b in pieces]
        if len(chunks) > 1:
            first, last = chunks[0], chunks[-1]
            self._check_mean(first[1:], last[1:], chunk_size)
        return chunks

    def _check_mean(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], chunk_size: int) -> None:
        """Raise ValueError unless the loss of two chunks together is the mean of their losses."""
        both = torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])
        joint, *losses = (float(self._loss(*part, derivable=False)) for part in (both, a, b))
        mean = (len(a[0]) * losses[0] + len(b[0]) * losses[1]) / (len(a[0]) + len(b[0]))
        if not abs(joint - mean) <= 1e-4 * abs(mean):
            raise ValueError(
                f"loss_fn must be a mean over samples that do not interact when chunk_size={chunk_size}, got "
                f"{joint!r} on two chunks and {mean!r} as their mean"
            )

    def _loss(self, x: Any, y: Any, values: Any = None, *, derivable: bool = True) -> Tensor:
        """The loss at the leaves, or at other values."""
        output = self.snapshot.call(x, values, derivable=derivable)
        with self.snapshot.quiet(derivable=derivable):
            loss = self.loss_fn(output, y)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ValueError(f"loss_fn must return one number, got {getattr(loss, 'shape', type(loss))}")
        return loss.reshape(())

    def _gradients(self, x: Any, y: Any) -> tuple[Tensor, ...]:
        loss = self._loss(x, y)
        if not bool(loss.isfinite()):
            raise ValueError(f"loss_fn must be finite on the batch, got {float(loss.detach())!r}")
        gradients = grad(loss, self.snapshot.tensors, create_graph=True)
        if derivable_once(gradients):
            raise RuntimeError(
                "the model has a once_differentiable part, whose second derivative is not known"
            )
        return gradients

    def _product(self, vector: Tensor) -> Tensor:
        vector = self.snapshot.without_padding(vector)
        if self.method == "finite_difference":
            return self._difference(vector)
        if self.method == "jvp_grad":
            return self._sum(self._forward_over_reverse, vector)
        try:
            return self._sum(self._double_backward, vector)
        except RuntimeError as error:
            if not self._may_switch or "derivative" not in str(error):
                raise
        self.method = "finite_difference"
        return self._difference(vector)

    def _sum(self, part: Callable[..., Tensor], vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for share, x, y in self._chunks:
            total += share * part(vector, x, y)
        return total

    def _double_backward(self, vector: Tensor, x: Any, y: Any) -> Tensor:
        """H v through the graph of the gradient, kept where there is one chunk."""
        keep = len(self._chunks) == 1
        gradients = self._kept or self._gradients(x, y)
        self._kept = gradients if keep else None
        if not any(g.requires_grad for g in gradients):
            return torch.zeros_like(vector)
        return flatten(grad(gradients, self.snapshot.tensors, self.snapshot.split(vector), retain_graph=keep))

    def _forward_over_reverse(self, vector: Tensor, x: Any, y: Any) -> Tensor:
        """H v as the derivative of the gradient along v."""
        values = {n: p.detach() for n, p in self.snapshot.leaves.items()}
        tangents = self.snapshot.named(vector)
        # torch fails on the implicit zero tangent of a real target, so it gets an explicit one
        target = (y,) if isinstance(y, Tensor) and y.is_floating_point() else ()
        gradient = torch.func.grad(lambda at, *given: self._loss(x, given[0] if given else y, at))
        zeros = tuple(torch.zeros_like(t) for t in target)
        product: dict[str, Tensor] = torch.func.jvp(gradient, (values, *target), (tangents, *zeros))[1]
        return flatten(product[n] for n in values)

    def _gradient_at(self, shift: Tensor) -> Tensor:
        moved = {
            n: (p + s).requires_grad_()
            for (n, p), s in zip(self._detached(), self.snapshot.split(shift), strict=True)
        }
        total = torch.zeros_like(shift)
        for share, x, y in self._chunks:
            total += share * flatten(grad(self._loss(x, y, moved), list(moved.values())))
        return total

    def _detached(self) -> Iterator[tuple[str, Tensor]]:
        """Names and values of the parameters."""
        return ((n, p.detach()) for n, p in self.snapshot.leaves.items())

    def _difference(self, vector: Tensor) -> Tensor:
        """H v by central differences; the first product searches the step."""
        norm = float(vector.norm())
        if norm == 0.0:
            return torch.zeros_like(vector)
        unit = vector / norm
        if self._step == 0.0:
            return norm * self._search(unit)
        return norm * self._central(unit, self._step)

    def _central(self, unit: Tensor, h: float) -> Tensor:
        """(g(w + h u) - g(w - h u)) / 2h."""
        return (self._gradient_at(h * unit) - self._gradient_at(-h * unit)) / (2 * h)

    def _search(self, unit: Tensor) -> Tensor:
        """The best of a ladder of steps, by the change from one to the next; ReLU nets need small ones."""
        size = max(float(flatten(self.snapshot.tensors).detach().norm()), 1.0)
        steps = [size * torch.finfo(self.dtype).eps ** (1 / 3) * 8.0**k for k in range(-5, 2)]
        products = [self._central(unit, h) for h in steps]
        changes = [float((b - a).norm()) for a, b in pairwise(products)]
        best = min(range(len(changes)), key=changes.__getitem__)
        self._step = steps[best]
        self._note_error(products[best], products[best + 1])
        return products[best]

    def _note_error(self, a: Tensor, b: Tensor) -> None:
        """Keep the largest relative difference of two estimates of a product."""
        size = float(a.norm())
        self.error = max(self.error, float((a - b).norm()) / size if size > 0 else 0.0)

    def recheck(self, vector: Tensor) -> None:
        """Repeat a product with another step, so that `error` covers it too (finite differences only)."""
        if self.method == "finite_difference" and float(vector.norm()) > 0:
            unit = vector / vector.norm()
            self._note_error(self._central(unit, self._step), self._central(unit, 2.5 * self._step))


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
