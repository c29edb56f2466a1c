"""The neural tangent kernel J J^T/m by its products with vectors, and its top eigenvalue.

J is the Jacobian of all m*K outputs in all trainable parameters. With the loss (1/2m) sum of squares the kernel has the top
eigenvalue of the Hessian where the residuals vanish, and gradient descent on the linearised net is stable for
rates below 2 over it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from normcore.checks import checked_count
from normcore.curvature.lanczos import top_eigenpair
from normcore.curvature.layerwise import StructuredKernel, Unstructured
from normcore.curvature.operator import EigenResult, SymmetricOperator
from normcore.curvature.snapshot import Snapshot, derivable_once, flatten, grad

METHODS = ("auto", "structured", "lanczos", "dense")

DENSE = 32
"""Up to so many outputs in all, one backward pass each costs less than Lanczos."""

STRUCTURED = 48
"""Up to so many outputs a sample, one backward pass each costs less than Lanczos on the model."""


class NTKOperator(SymmetricOperator):
    """J J^T/m at the parameters the model has now; `@` multiplies, `.to_scipy()` interoperates.

    Vectors are the outputs (m, ...) flattened. It holds copies: the model may train on. Arguments as in
    `ntk_top_eigenvalue`; `why` says why "auto" did not take the structured kernel.
    """

    def __init__(
        self, model: nn.Module, x: Any, method: str = "auto", *, chunk_size: int | None = None, seed: int = 0
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {method!r}")
        self.snapshot, self.why = Snapshot(model, seed), ""
        self.output_shape = self._sound(self.snapshot.call(x, derivable=False)).shape
        self.samples = self.output_shape[0]
        self.method = self._choose(method, x, chunk_size)
        size = self.output_shape.numel()
        super().__init__(self._product, size, self.snapshot.dtype, self.snapshot.device)
        if self.method == "dense":
            rows = self._rows(x)
            self._matrix = rows @ rows.T / self.samples
        elif self.method == "lanczos":
            self._chunks = [x] if chunk_size is None else self._split(x, chunk_size)
            self._graph = self._transposed(x) if len(self._chunks) == 1 else None

    @staticmethod
    def _sound(output: Any) -> Tensor:
        """The output, if it is one finite tensor."""
        if not isinstance(output, Tensor) or output.dim() == 0 or not output.is_floating_point():
            raise TypeError(f"model must return one real tensor (m, ...), got {type(output).__name__}")
        if not bool(output.isfinite().all()):
            raise ValueError("model must give finite outputs on x, got NaN or infinity")
        return output

    def _choose(self, method: str, x: Any, chunk_size: int | None) -> str:
        """The method by cost, and the structured kernel where that is it."""
        if chunk_size is not None:
            if method in ("structured", "dense"):
                raise ValueError(f"chunk_size must be None unless method is 'lanczos', got {chunk_size}")
            return "lanczos"
        outputs = self.output_shape.numel()
        if method == "structured" or (method == "auto" and outputs <= STRUCTURED * self.samples):
            try:
                self._kernel = StructuredKernel(self.snapshot, x)
                return "structured"
            except Unstructured as reason:
                self.why = str(reason)
                if method == "structured":
                    raise ValueError(f"method must not be 'structured' for a model with {reason}") from reason
        if method == "auto":
            return "dense" if outputs <= DENSE else "lanczos"
        return method

    def _split(self, x: Any, chunk_size: int) -> list[Tensor]:
        checked_count("chunk_size", chunk_size)
        if not isinstance(x, Tensor) or len(x) != self.samples:
            raise TypeError("x must be one tensor, a row a sample, when chunk_size is given")
        if self.snapshot.couples_samples():
            raise ValueError(
                f"chunk_size must be None while a BatchNorm uses batch statistics, got {chunk_size}"
            )
        chunks = list(x.split(chunk_size))
        ends = chunks[0], chunks[-1]
        apart = torch.cat([self.snapshot.call(end, derivable=False) for end in ends])
        joint = self.snapshot.call(torch.cat(ends), derivable=False)
        if not torch.allclose(apart, joint, rtol=1e-4, atol=1e-4 * float(joint.abs().max())):
            raise ValueError(f"samples must not interact when chunk_size={chunk_size}, got outputs that do")
        return chunks

    def _rows(self, x: Any) -> Tensor:
        """The dense Jacobian, one backward pass a row."""
        output = self.snapshot.call(x).flatten()
        return torch.stack([flatten(grad(f, self.snapshot.tensors, retain_graph=True)) for f in output])

    def _transposed(self, x: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The output, a dummy u, and J^T u as a function of u: its derivative along w is J w."""
        output = self.snapshot.call(x)
        dummy = torch.zeros_like(output, requires_grad=True)
        gradients = list(grad(output, self.snapshot.tensors, dummy, create_graph=True))
        if derivable_once(gradients):
            raise ValueError(
                "method must be 'structured' or 'dense' for a model with a once_differentiable part, got 'lanczos'"
            )
        return output, dummy, gradients

    def _product(self, vector: Tensor) -> Tensor:
        if self.method == "dense":
            return self._matrix @ vector
        if self.method == "structured":
            return self._kernel.apply(vector.view(self.samples, -1)).flatten() / self.samples
        u = vector.view(self.output_shape)
        if self._graph is not None:
            return self._forward(self._graph, self._backward(self._graph, u)).flatten() / self.samples
        shares = u.split([len(c) for c in self._chunks])
        direction = [torch.zeros_like(p) for p in self.snapshot.tensors]
        for chunk, share in zip(self._chunks, shares, strict=True):
            torch._foreach_add_(
                direction, list(grad(self.snapshot.call(chunk), self.snapshot.tensors, share))
            )
        moved = [self._forward(self._transposed(chunk), direction) for chunk in self._chunks]
        return torch.cat(moved).flatten() / self.samples

    def _backward(self, graph: tuple[Tensor, Tensor, list[Tensor]], u: Tensor) -> list[Tensor]:
        return list(grad(graph[0], self.snapshot.tensors, u, retain_graph=True))

    def _forward(self, graph: tuple[Tensor, Tensor, list[Tensor]], direction: list[Tensor]) -> Tensor:
        pairs = [(g, w) for g, w in zip(graph[2], direction, strict=True) if g.requires_grad]
        inner, weights = [g for g, _ in pairs], [w for _, w in pairs]
        return torch.autograd.grad(inner, graph[1], weights, retain_graph=True)[0]


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
        TypeError: the model returns something else than one tensor.

    Example:
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> result = ntk_top_eigenvalue(nn.Linear(2, 1, bias=False).double(), x)
        >>> round(result.value, 9), result.method  # X X^T/m: 9/2
        (4.5, 'structured')

    """
    operator = NTKOperator(model, x, method, chunk_size=chunk_size, seed=seed)
    found = top_eigenpair(operator, start=start, tol=tol, max_matvecs=max_matvecs, seed=seed)
    vector = found.vector.view(operator.output_shape)
    return EigenResult(found.value, vector, found.residual, found.matvecs, found.converged, operator.method)
