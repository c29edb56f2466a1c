"""The Hessian of a loss by its products with vectors, in the mode the model is in."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from normcore.checks import checked_choice, checked_count, checked_loss, checked_pair, require_type
from normcore.curvature.operator import EigenResult, SymmetricOperator, default_tolerance, usable
from normcore.curvature.snapshot import Snapshot, derivable_once, flatten, grad

METHODS = ("auto", "double_backward", "jvp_grad", "finite_difference")
NO_FORWARD = ("saved tensor hooks", "jvp function", "setup_context")  # torch's words for it

Loss = Callable[[Any, Any], Tensor]


class HessianOperator(SymmetricOperator):
    """The Hessian at the parameters the model has now; `@` multiplies.

    It holds copies: the model may train on. Arguments as in `hessian_top_eigenvalue`. `error` is the largest
    relative error estimate of a product so far (finite differences only, otherwise 0).
    """

    @torch.inference_mode(False)  # which also allows gradients, wherever the call stands
    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        batch: tuple[Any, Any],
        method: str = "auto",
        *,
        chunk_size: int | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare the products; with method "auto" the first way that works is taken."""
        require_problem(loss_fn, batch, method, chunk_size)
        self.snapshot, self.loss_fn, self.error = Snapshot(model, seed), loss_fn, 0.0
        super().__init__(self._product, self.snapshot.size, self.snapshot.dtype, self.snapshot.device)
        x, y = usable(batch)
        self._chunks = [(1.0, x, y)] if chunk_size is None else self._split(x, y, chunk_size)
        self._kept: tuple[Tensor, ...] | None = None
        self._step = 0.0
        self._may_switch = method == "auto"
        self.method = "double_backward" if method == "auto" else method

    def _split(self, x: Any, y: Any, chunk_size: int) -> list[tuple[float, Any, Any]]:
        """The batch in chunks, each with what its own loss counts in the loss of the whole batch.

        Means and sums over samples, weighted or with some left out, are sums of such shares, a loss that compares
        samples is none. Which it is the loss itself says, as a function of the outputs: its gradient on a chunk
        is that of the chunk alone, times the same share at the weights as they are and at others nearby.
        """
        if not isinstance(y, Tensor) or not isinstance(x, Tensor) or len(x) != len(y):
            raise TypeError("batch must be two tensors of one length when chunk_size is given")
        chunks = list(zip(self.snapshot.chunks(x, chunk_size), y.split(chunk_size), strict=True))
        places = None, self.snapshot.nearby()
        outputs = [[self.snapshot.call(a, at) for a, _ in chunks] for at in places]
        whole = [self._slope(torch.cat(out), y).split([len(part) for part in out]) for out in outputs]
        shares = []
        for i, (_, target) in enumerate(chunks):
            alone = flatten(self._slope(out[i], target, finite=False) for out in outputs)
            shares.append(_share(flatten(slopes[i] for slopes in whole), alone, chunk_size))
        return [(share, *chunk) for share, chunk in zip(shares, chunks, strict=True) if share]

    def _slope(self, output: Tensor, y: Tensor, *, finite: bool = True) -> Tensor:
        output = output.requires_grad_()
        with self.snapshot.quiet():
            return grad(checked_loss(self.loss_fn(output, y), finite=finite), [output])[0]

    def _loss(self, model: nn.Module, x: Any, y: Any) -> Tensor:
        return checked_loss(self.loss_fn(model(x), y))

    def _gradients(self, x: Any, y: Any) -> tuple[Tensor, ...]:
        work = lambda model: grad(self._loss(model, x, y), self.snapshot.tensors, create_graph=True)  # noqa: E731
        gradients: tuple[Tensor, ...] = self.snapshot.run(work)
        if derivable_once(gradients):
            raise RuntimeError("the model has a once_differentiable part, of no known second derivative")
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
        pieces, leaves = [*self.snapshot.named(vector).values()], self.snapshot.tensors
        return flatten(self.snapshot.run(lambda _: grad(gradients, leaves, pieces, retain_graph=keep)))

    def _forward_over_reverse(self, vector: Tensor, x: Any, y: Any) -> Tensor:
        values = {n: p.detach() for n, p in self.snapshot.leaves.items()}
        # torch fails on the implicit zero tangent of a real target, so it gets an explicit one
        target = (y,) if isinstance(y, Tensor) and y.is_floating_point() else ()

        def loss(at: dict[str, Tensor], *given: Tensor) -> Tensor:
            return self.snapshot.run(lambda model: self._loss(model, x, given[0] if given else y), at)

        tangents = self.snapshot.named(vector), *(torch.zeros_like(t) for t in target)
        try:
            product: dict[str, Tensor] = torch.func.jvp(torch.func.grad(loss), (values, *target), tangents)[1]
        except RuntimeError as error:
            if not any(word in str(error) for word in NO_FORWARD):
                raise
            where = (
                "under activation checkpointing, or with an autograd.Function that has no forward derivative"
            )
            raise ValueError(f"method must not be 'jvp_grad' {where}") from error
        return flatten(product[n] for n in values)

    def _gradient(self, shift: Tensor, x: Any, y: Any) -> Tensor:
        """The gradient at shifted weights, from first-order operations only."""
        pieces = self.snapshot.named(shift)
        moved = {n: (p.detach() + pieces[n]).requires_grad_() for n, p in self.snapshot.leaves.items()}
        work = lambda model: grad(self._loss(model, x, y), list(moved.values()))  # noqa: E731
        return flatten(self.snapshot.run(work, moved))

    def _difference(self, vector: Tensor) -> Tensor:
        """H v by central differences; the first product searches the step."""
        norm = float(vector.norm())
        if norm == 0.0:
            return torch.zeros_like(vector)
        unit = vector / norm
        return norm * (self._search(unit) if self._step == 0.0 else self._central(unit, self._step))

    def _central(self, unit: Tensor, h: float) -> Tensor:
        return (self._sum(self._gradient, h * unit) - self._sum(self._gradient, -h * unit)) / (2 * h)

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
        size = float(a.norm())
        self.error = max(self.error, float((a - b).norm()) / size if size > 0 else 0.0)

    @torch.inference_mode(False)
    def recheck(self, found: EigenResult, tol: float | None) -> EigenResult:
        """The result, trusted as far as another step of the differences gives the same."""
        if self.method == "finite_difference" and float(found.vector.norm()) > 0:
            unit = found.vector / found.vector.norm()
            self._note_error(self._central(unit, self._step), self._central(unit, 2.5 * self._step))
        residual = max(found.residual, self.error)
        sure = found.converged and residual <= (default_tolerance(self.dtype) if tol is None else tol)
        return replace(found, residual=residual, converged=sure, method=self.method)


def require_problem(loss_fn: Any, batch: Any, method: Any, chunk_size: Any) -> None:
    """Raise TypeError or ValueError unless these can define a Hessian."""
    checked_choice("method", method, METHODS)
    require_type("loss_fn", loss_fn, Callable, "a function")
    checked_pair(batch)
    if chunk_size is not None:
        checked_count("chunk_size", chunk_size)


def _share(whole: Tensor, alone: Tensor, chunk_size: int) -> float:
    """The factor between two gradients that must be parallel; 0 where the loss leaves the chunk out."""
    if not bool(whole.any()):
        return 0.0
    share = float(whole.double() @ alone.double() / alone.double().square().sum())
    if not float((whole - share * alone).norm()) <= default_tolerance(whole.dtype) * float(whole.norm()):
        need = f"a sum or mean over samples, weighted or not, when chunk_size={chunk_size}"
        got = "one whose gradient on a chunk is no multiple of that of the chunk alone"
        raise ValueError(f"loss_fn must be {need}, got {got}")
    return share
