"""The neural tangent kernel J J^T/m by its products with vectors, and its top eigenvalue.

J is the Jacobian of all m*K outputs in all trainable parameters. With the loss (1/2m) sum of squares the kernel has the top
eigenvalue of the Hessian where the residuals vanish, and gradient descent on the linearised net is stable for
rates below 2 over it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from normcore.checks import NonFiniteError, checked_choice
from normcore.curvature.layerwise import StructuredKernel, Unstructured
from normcore.curvature.operator import EigenResult, SymmetricOperator, top_eigenpair, usable
from normcore.curvature.snapshot import Snapshot, derivable_once, flatten, grad

METHODS = ("auto", "structured", "lanczos", "dense")

DENSE = 32
"""Up to so many outputs in all, one backward pass each costs less than Lanczos."""

STRUCTURED = 48
"""Up to so many outputs a sample, one backward pass each costs less than Lanczos on the model."""

Graph = tuple[Tensor, Tensor, tuple[Tensor, ...]]
"""The output, a dummy u, and J^T u as a function of u: its derivative along w is J w."""


class NTKOperator(SymmetricOperator):
    """J J^T/m at the parameters the model has now; `@` multiplies.

    Vectors are the outputs (m, ...) flattened. It holds copies: the model may train on. Arguments as in
    `ntk_top_eigenvalue`; `why` says why "auto" did not take the structured kernel.
    """

    @torch.inference_mode(False)  # which also allows gradients, wherever the call stands
    def __init__(
        self, model: nn.Module, x: Any, method: str = "auto", *, chunk_size: int | None = None, seed: int = 0
    ) -> None:
        checked_choice("method", method, METHODS)
        if chunk_size is not None and method in ("structured", "dense"):
            raise ValueError(f"chunk_size must be None unless method is 'lanczos', got {chunk_size}")
        self.snapshot, self.why, x = Snapshot(model, seed), "", usable(x)
        self.output_shape = _sound(self.snapshot.call(x)).shape
        self.samples, size = self.output_shape[0], self.output_shape.numel()
        products = None
        if chunk_size is not None:
            chunks = self.snapshot.chunks(x, chunk_size)
            method, products = "lanczos", self._passes(chunks, [len(chunk) for chunk in chunks])
        elif method == "structured" or (method == "auto" and size <= STRUCTURED * self.samples):
            products = self._structured(x, method)
        if method == "auto":
            method = "structured" if products else "dense" if size <= DENSE else "lanczos"
        if products is None:
            products = self._dense(x) if method == "dense" else self._passes([x], [self.samples])
        self.method = method
        kind = self.snapshot.dtype, self.snapshot.device
        super().__init__(lambda vector: products(vector) / self.samples, size, *kind)

    def _structured(self, x: Any, method: str) -> Callable[[Tensor], Tensor] | None:
        try:
            kernel = StructuredKernel(self.snapshot, x)
        except Unstructured as reason:
            self.why = str(reason)
            if method == "structured":
                raise ValueError(f"method must not be 'structured' for a model with {reason}") from reason
            return None
        return lambda vector: kernel.apply(vector.view(self.samples, -1)).flatten()

    def _dense(self, x: Any) -> Callable[[Tensor], Tensor]:
        def jacobian(model: nn.Module) -> Tensor:
            output = model(x).flatten()
            return torch.stack([flatten(grad(f, self.snapshot.tensors, retain_graph=True)) for f in output])

        rows = self.snapshot.run(jacobian)
        return (rows @ rows.T).mv

    def _passes(self, chunks: list[Any], sizes: list[int]) -> Callable[[Tensor], Tensor]:
        """J^T u by backward passes, J w by the derivatives of such passes; a single chunk's graph is kept."""
        kept = self._graph(chunks[0]) if len(chunks) == 1 else None
        leaves, run = self.snapshot.tensors, self.snapshot.run

        def pull(chunk: Any, u: Tensor) -> tuple[Tensor, ...]:
            if kept is not None:
                return run(lambda _: grad(kept[0], leaves, u, retain_graph=True))
            return run(lambda model: grad(model(chunk), leaves, u))

        def push(chunk: Any, direction: Any) -> Tensor:
            _, dummy, transposed = kept or self._graph(chunk)
            pairs = [(g, w) for g, w in zip(transposed, direction, strict=True) if g.requires_grad]
            inner, weights = zip(*pairs, strict=True)
            return run(lambda _: torch.autograd.grad(inner, dummy, weights, retain_graph=True)[0].flatten())

        def product(vector: Tensor) -> Tensor:
            first, *rest = zip(chunks, vector.view(self.output_shape).split(sizes), strict=True)
            direction: Any = pull(*first)
            for chunk, u in rest:
                direction = torch._foreach_add(direction, pull(chunk, u))
            return torch.cat([push(chunk, direction) for chunk in chunks])

        return product

    def _graph(self, x: Any) -> Graph:
        def transposed(model: nn.Module) -> Graph:
            output = model(x)
            dummy = torch.zeros_like(output, requires_grad=True)
            return output, dummy, grad(output, self.snapshot.tensors, dummy, create_graph=True)

        graph = self.snapshot.run(transposed)
        if derivable_once(graph[2]):
            raise ValueError(
                "method must be 'structured' or 'dense' for a model with a once_differentiable part, got 'lanczos'"
            )
        return graph


def _sound(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() == 0 or not output.is_floating_point():
        raise TypeError(f"model must return one real tensor (m, ...), got {type(output).__name__}")
    if not output.numel():
        raise ValueError(f"x must hold at least one sample, got an output of shape {tuple(output.shape)}")
    if not bool(output.isfinite().all()):
        raise NonFiniteError("model must give finite outputs on x, got NaN or infinity")
    return output


def ntk_top_eigenvalue(
    model: nn.Module,
    x: Any,
    method: str = "auto",
    *,
    start: Tensor | None = None,
    tol: float | None = None,
    max_matvecs: int = 200,
    chunk_size: int | None = None,
    seed: int = 0,
) -> EigenResult:
    """Find the largest eigenvalue of the NTK J J^T/m of a model on its inputs: the curvature of the catapult.

    Where a loss is a multiple of (1/2m) sum of squares, so is its curvature: nn.MSELoss has 2/K of it. The
    model is evaluated in the modes it is in; weights, gradients, statistics, modes and random state stay.

    Args:
        model: any module, called as model(x), with an output (m, ...).
        x: the inputs that gradient descent sees; a small subset has a larger top eigenvalue.
        method: "structured" (layer by layer, K backward passes), "lanczos" (vjp and jvp of the whole model),
            "dense" (m*K backward passes), or "auto": structured where it covers the model, which is verified, and K <= 48;
            otherwise dense up to 32 outputs in all, Lanczos above.
        start: `vector` of an earlier result, to start from.
        tol: bound on the relative residual; 1e-6 in float64, 1e-4 otherwise.
        max_matvecs: products allowed.
        chunk_size: samples held in memory at once (Lanczos); needs samples that do not interact.
        seed: of the start vector, and of dropout.

    Returns:
        EigenResult; `vector` has the shape of the output.

    Raises:
        ValueError: no trainable parameter, outputs not finite, a method that does not fit the model.
        TypeError: the model returns something else than one tensor, or an argument is of another type.

    Example:
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> result = ntk_top_eigenvalue(nn.Linear(2, 1, bias=False).double(), x)
        >>> round(result.value, 9), result.method  # X X^T/m: 9/2
        (4.5, 'structured')

    """
    operator = NTKOperator(model, x, method, chunk_size=chunk_size, seed=seed)
    found = top_eigenpair(operator, start=start, tol=tol, max_matvecs=max_matvecs, seed=seed)
    vector = found.vector.view(operator.output_shape)
    return replace(found, vector=vector, method=operator.method)
