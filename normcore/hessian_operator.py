"""The Hessian of a loss in all trainable parameters, by its products with vectors.

Three ways to a product: double backward through a graph that is kept, forward over reverse (jvp of grad), and
central differences of gradients with an error estimate. torch.func.hessian and jvp of jacrev are not among
them: they are silently wrong on affine LayerNorm and BatchNorm.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from normcore.checks import checked_count
from normcore.snapshot import Snapshot, derivable_once, flatten, grad
from normcore.spectrum import SymmetricOperator

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
        """The gradient, with its graph."""
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
        """H v."""
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
        """The weighted sum over chunks."""
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
        """The gradient at shifted parameters."""
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
