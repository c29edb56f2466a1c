"""The catapult model with d inputs and m samples, carried by the correlations of its weights.

Output f_a = n^{-1/2} v.(u x_a), u in R^{n x d}, v in R^n; loss (1/2m) sum_a (f_a - y_a)^2; gradient descent.
The numbers |v|^2, u^T u and u^T v are a closed system of size O(d^2), whatever the width n.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normcore.checks import FloatArray, checked, checked_count, common_shape, numbers, require_type

LOST = 1e100
"""A number above this has diverged: the next step still fits a float, nearly always."""


@dataclass(frozen=True)
class WeightCorrelations:
    """The state of the model: vv = |v|^2/n (...), uu = u^T u/n (..., d, d), uv = u^T v/sqrt(n) (..., d).

    Raises:
        ValueError: the shapes do not fit, or width < 1.
        TypeError: a part is not made of numbers.

    """

    vv: FloatArray
    uu: FloatArray
    uv: FloatArray
    width: int

    def __post_init__(self) -> None:
        checked_count("width", self.width)
        for name in ("vv", "uu", "uv"):
            object.__setattr__(self, name, numbers(name, getattr(self, name)))
        shape = self.vv.shape, self.uu.shape, self.uv.shape
        batch, d = shape[0], shape[2][-1:]
        if not d or shape != (batch, (*batch, *d, *d), (*batch, *d)):
            got = ", ".join(map(str, shape))
            raise ValueError(f"vv must be (...), uu (..., d, d) and uv (..., d), got shapes {got}")

    @classmethod
    def from_weights(cls, u: ArrayLike, v: ArrayLike) -> "WeightCorrelations":
        """The state of given weights u (..., n, d) and v (..., n)."""
        u, v = checked("u", u), checked("v", v)
        if u.ndim < 2 or u.shape[:-1] != v.shape or not v.shape[-1]:
            raise ValueError(f"u must be (..., n, d) and v (..., n), got shapes {u.shape} and {v.shape}")
        n = v.shape[-1]
        uu, uv = np.swapaxes(u, -1, -2) @ u / n, np.einsum("...nd,...n->...d", u, v) / np.sqrt(n)
        return cls(np.sum(v**2, axis=-1) / n, uu, uv, n)

    @classmethod
    def draw(
        cls, width: int, dim: int, size: int | tuple[int, ...] = (), *, seed: int = 0
    ) -> "WeightCorrelations":
        """The state of N(0, 1) weights, drawn from its exact law (Bartlett): width 2^60 costs what 2 does."""
        n, d = checked_count("width", width), checked_count("dim", dim)
        sizes = size if isinstance(size, tuple) else (size,)
        shape = tuple(checked_count("size", length, least=0) for length in sizes)
        rng = np.random.default_rng(checked_count("seed", seed, least=0))
        if n < d + 1:
            return cls.from_weights(rng.standard_normal((*shape, n, d)), rng.standard_normal((*shape, n)))
        factor = np.tril(rng.standard_normal((*shape, d + 1, d + 1)), -1)
        diagonal = np.sqrt(rng.chisquare(n - np.arange(d + 1.0), (*shape, d + 1)))
        factor[..., range(d + 1), range(d + 1)] = diagonal
        gram = factor @ np.swapaxes(factor, -1, -2)
        return cls(gram[..., 0, 0] / n, gram[..., 1:, 1:] / n, gram[..., 1:, 0] / np.sqrt(n), n)

    def outputs(self, inputs: ArrayLike) -> FloatArray:
        """f_a (..., m) on the rows of inputs (m, d)."""
        return np.asarray(self.uv @ self._rows(inputs).T)

    def kernel(self, inputs: ArrayLike) -> FloatArray:
        """The NTK over m, (..., m, m): (|v|^2 x_a.x_b + x_a.u^T u x_b)/(n m)."""
        x = self._rows(inputs)
        return np.asarray((self.vv[..., None, None] * (x @ x.T) + x @ self.uu @ x.T) / len(x))

    def top(self, inputs: ArrayLike) -> FloatArray:
        """The top eigenvalue of the kernel, from the smaller of its two forms."""
        x = self._rows(inputs)
        if x.shape[0] <= x.shape[1]:
            return np.asarray(np.linalg.eigvalsh(self.kernel(x))[..., -1])
        values, vectors = np.linalg.eigh(self.vv[..., None, None] * np.eye(x.shape[1]) + self.uu)
        root = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
        small = np.swapaxes(root, -1, -2) @ (x.T @ x / len(x)) @ root
        return np.asarray(np.linalg.eigvalsh(small)[..., -1])

    def _rows(self, inputs: ArrayLike) -> FloatArray:
        x, d = checked("inputs", inputs), self.uv.shape[-1]
        if x.ndim != 2 or x.shape[1] != d or not len(x):
            raise ValueError(f"inputs must be (m, d) with m >= 1 and d = {d}, got shape {x.shape}")
        return x


@dataclass(frozen=True)
class FullRun:
    """A run of the full model: output (steps+1, ..., m), curvature (steps+1, ...), the final state.

    Infinite from where a run diverges. `phase` (...) is read off the run: "divergent" if it diverges within
    `steps`, "catapult" if its loss rises above the first, "lazy" otherwise.
    """

    output: FloatArray
    curvature: FloatArray
    loss: FloatArray
    phase: NDArray[np.str_]
    state: WeightCorrelations


def simulate_full(
    start: WeightCorrelations, inputs: ArrayLike, labels: ArrayLike, lr: ArrayLike, steps: int
) -> FullRun:
    """Run full-batch gradient descent on the two-layer linear model by its weight correlations.

    With V = |v|^2/n, U = u^T u/n, g = u^T v/sqrt(n), f = X g and zeta = X^T (f-y)/m, one step is exactly

        V' = V - (2 eta/n) g.zeta + (eta^2/n) zeta.U zeta
        U' = U - (eta/n) (g zeta^T + zeta g^T) + (eta^2/n) V zeta zeta^T
        g' = g - eta (U zeta + V zeta) + (eta^2/n) (g.zeta) zeta.

    The curvature is the top eigenvalue of the NTK over m, (V X X^T + X U X^T)/m. While the output lies along
    its top eigenvector the edges are those of the warm-up model, 2 and 4 over lambda_0 at large width.

    Args:
        start: WeightCorrelations of batch shape (...).
        inputs: X (m, d).
        labels: y (m,).
        lr: eta > 0; broadcasts with the batch shape of the start.
        steps: number of steps, >= 0.

    Returns:
        FullRun; index 0 of its arrays is the start.

    Raises:
        ValueError: an argument breaks its condition, or shapes do not fit.
        TypeError: an argument is not numeric.

    Example:
        >>> x, y = np.eye(2, 3), np.array([1.0, -1.0])
        >>> start = WeightCorrelations.draw(2**60, 3)
        >>> lr = np.array([1.0, 2.5, 5.0]) / start.top(x)
        >>> simulate_full(start, x, y, lr, 100).phase.tolist()
        ['lazy', 'catapult', 'divergent']

    Source: the model is that of Lewkowycz et al. (2020), arXiv 2003.02218; the closed system is this project's.

    """
    require_type("start", start, WeightCorrelations, "WeightCorrelations")
    steps = checked_count("steps", steps, least=0)
    x, y, eta = start._rows(inputs), checked("labels", labels), checked("lr", lr, above=0.0)
    if y.shape != x.shape[:1]:
        raise ValueError(f"labels must be ({len(x)},), one a row of inputs, got shape {y.shape}")
    state, eta = _broadcast(start, eta)
    batch = eta.shape
    outputs, curvatures = np.full((steps + 1, *batch, len(x)), np.inf), np.full((steps + 1, *batch), np.inf)
    alive = np.ones(batch, dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(steps + 1):
            residual = state.outputs(x) - y
            sound = np.all(np.abs(residual) < LOST, axis=-1) & (np.abs(state.vv) < LOST)
            alive &= sound & np.all(np.abs(state.uu) < LOST, axis=(-1, -2))
            state, residual = _reset(state, ~alive), np.where(alive[..., None], residual, 0.0)
            outputs[t, alive] = (residual + y)[alive]
            curvatures[t, alive] = state.top(x)[alive]
            if t < steps:
                state = _step(state, residual @ x / len(x), eta)
        loss = np.mean((outputs - y) ** 2, axis=-1) / 2
    phase = np.where(alive, np.where(loss.max(axis=0) > loss[0], "catapult", "lazy"), "divergent")
    return FullRun(outputs, curvatures, loss, phase, _reset(state, ~alive, np.inf))


def _broadcast(start: WeightCorrelations, eta: FloatArray) -> tuple[WeightCorrelations, FloatArray]:
    d = start.uv.shape[-1]
    shape = common_shape(start=start.vv, lr=eta)
    vv, uu = np.broadcast_to(start.vv, shape), np.broadcast_to(start.uu, (*shape, d, d))
    state = WeightCorrelations(vv, uu, np.broadcast_to(start.uv, (*shape, d)), start.width)
    return state, np.broadcast_to(eta, shape)


def _reset(state: WeightCorrelations, where: NDArray[np.bool_], to: float = 1.0) -> WeightCorrelations:
    """Harmless numbers (the given V, the rest 0) in place of diverged states."""
    vv, uv = np.where(where, to, state.vv), np.where(where[..., None], 0.0, state.uv)
    return WeightCorrelations(vv, np.where(where[..., None, None], 0.0, state.uu), uv, state.width)


def _step(state: WeightCorrelations, zeta: FloatArray, eta: FloatArray) -> WeightCorrelations:
    n, rate = state.width, eta[..., None]
    u_zeta = np.einsum("...ij,...j->...i", state.uu, zeta)
    overlap = np.sum(state.uv * zeta, axis=-1)
    outer, cross = zeta[..., :, None] * zeta[..., None, :], state.uv[..., :, None] * zeta[..., None, :]
    vv = state.vv - 2 * eta / n * overlap + eta**2 / n * np.sum(zeta * u_zeta, axis=-1)
    uu = state.uu - rate[..., None] / n * (cross + np.swapaxes(cross, -1, -2))
    uu = uu + (eta**2 / n * state.vv)[..., None, None] * outer
    uv = state.uv - rate * (u_zeta + state.vv[..., None] * zeta) + (eta**2 / n * overlap)[..., None] * zeta
    return WeightCorrelations(vv, uu, uv, n)
