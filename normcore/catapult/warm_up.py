"""The catapult in models that can be solved: exact updates, phases and their edges, at any width.

The warm-up model has one sample x with label y and the output f = n^{-1/2} x (v.u), u and v in R^n, the
loss (f - y)^2/2 and gradient descent with rate eta. Its curvature lambda = x^2 (|u|^2+|v|^2)/n is the NTK,
and the top eigenvalue of the Hessian where f = y. The vectors p = (u+v)/sqrt2 and q = (u-v)/sqrt2 never
turn, so two numbers carry a model of any width. `lr_phases` takes the edges to other nets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normcore.catapult.many_inputs import WeightCorrelations
from normcore.checks import FloatArray, checked, checked_count, checked_number, common_shape, require
from normcore.curvature.operator import EigenResult

UPPER_EDGE = 4.0
"""eta lambda_0 at and above which the run with label 0 does not converge, for every width."""


def edges(
    output: ArrayLike, curvature: ArrayLike, width: ArrayLike, *, input: ArrayLike = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Compute the two exact edges in the learning rate for label 0: (lower, upper).

    The lower edge is the smaller root of eta lambda = 2 + eta^2 f^2 x^2/n, above which the first step raises
    the loss: 2/lambda (1 + O(1/n)). The upper edge is 4/lambda. Where the lower one would lie at or above the
    upper one (widths of a few), no first step raises the loss and it is NaN.

    Args:
        output: f_0; the arguments broadcast together.
        curvature: lambda_0 > 0.
        width: n >= 1.
        input: x.

    Raises:
        ValueError: an argument breaks its condition.

    Example:
        >>> lower, upper = edges(1.0, 2.0, 1000)
        >>> round(float(lower), 4), float(upper)
        (1.0005, 2.0)

    Source: this project.

    """
    f, curv, n, x = _broadcast(output=output, curvature=curvature, width=width, input=input)
    discriminant = curv**2 - 8 * (f * x) ** 2 / n
    upper = UPPER_EDGE / curv
    lower = 4 / (curv + np.sqrt(np.maximum(discriminant, 0.0)))
    return np.where((discriminant > 0) & (lower < upper), lower, np.nan), upper


LIMITS = {"curvature": {"above": 0.0}, "lr": {"above": 0.0}, "width": {"least": 1.0}}


def _broadcast(**arguments: ArrayLike) -> tuple[FloatArray, ...]:
    columns = {name: checked(name, value, **LIMITS.get(name, {})) for name, value in arguments.items()}
    shape = common_shape(**columns)
    return tuple(np.broadcast_to(column, shape) for column in columns.values())


def duration(scaled_curvature: ArrayLike, width: ArrayLike) -> FloatArray:
    """Compute the steps a catapult takes to reach outputs of order sqrt(n): t* = ln n / (2 ln(eta lambda_0 - 1)).

    Up to a constant that does not depend on n: while f is small it grows by eta lambda_0 - 1 a step, from O(1) to
    O(sqrt n).

    Args:
        scaled_curvature: eta lambda_0, in (2, 4), or a ValueError.
        width: n >= 1.

    Example:
        >>> float(duration(3.0, 1024))
        5.0

    Source: Lewkowycz et al. (2020), arXiv 2003.02218, for the order log n; the constant is this project's.

    """
    a = _catapult_range(scaled_curvature)
    return np.asarray(np.log(checked("width", width, least=1.0)) / (2 * np.log(a - 1)))


def final_curvature(scaled_curvature: ArrayLike) -> FloatArray:
    """Compute eta lambda where a catapult just above the lower edge ends, at large width.

    With d = eta lambda - 2 and z = eta^2 f^2/n the sum z + d^2/2 + d^3/3 is conserved up to higher orders,
    hence eta lambda_inf = 2 - delta - (2/3) delta^2 + O(delta^3), delta = eta lambda_0 - 2. Always
    lambda_inf <= 2/eta; for eta lambda_0 above about 3 the end depends on f_0 and this form is off.

    Args:
        scaled_curvature: eta lambda_0, in (2, 4), or a ValueError.

    Example:
        >>> round(float(final_curvature(2.1)), 4)
        1.8933

    Source: this project.

    """
    delta = _catapult_range(scaled_curvature) - 2
    return np.asarray(2 - delta - 2 * delta**2 / 3)


def peak(scaled_curvature: ArrayLike) -> FloatArray:
    """Compute the largest z = eta^2 f^2/n of a catapult just above the lower edge, at large width.

    z = delta^2/2 + delta^3/3 + O(delta^4), delta = eta lambda_0 - 2: the peak loss is n z/(2 eta^2), of order n.

    Args:
        scaled_curvature: eta lambda_0, in (2, 4), or a ValueError.

    Example:
        >>> round(float(peak(2.1)), 5)
        0.00533

    Source: this project.

    """
    delta = _catapult_range(scaled_curvature) - 2
    return np.asarray(delta**2 / 2 + delta**3 / 3)


def _catapult_range(scaled_curvature: ArrayLike) -> FloatArray:
    return checked("scaled_curvature", scaled_curvature, above=2.0, below=UPPER_EDGE)


SEPARATE = 1e-3
"""Where |P - Q| is a smaller fraction of P + Q, the residual is carried by its own recursion."""


@dataclass(frozen=True)
class WarmUpRun:
    """A run of the warm-up model; arrays are (steps+1, ...), and infinite from where a run overflows.

    `residual` is f - y, carried to full relative precision. `phase` (...) is "lazy", "catapult" or
    "divergent". `phase_is_exact` says whether it is read off the exact edges (label 0) or off the run.
    """

    output: FloatArray
    curvature: FloatArray
    residual: FloatArray
    lr: FloatArray
    phase: NDArray[np.str_]
    phase_is_exact: NDArray[np.bool_]

    @property
    def loss(self) -> FloatArray:
        """(f - y)^2 / 2."""
        with np.errstate(over="ignore"):
            return np.asarray(self.residual**2 / 2)


def simulate(
    output: ArrayLike,
    curvature: ArrayLike,
    lr: ArrayLike,
    width: ArrayLike,
    steps: int,
    *,
    label: ArrayLike = 0.0,
    input: ArrayLike = 1.0,
) -> WarmUpRun:
    """Run gradient descent on the warm-up model from its output and curvature, whatever the width.

    With P = eta x^2 |p|^2/n, Q = eta x^2 |q|^2/n and r = eta (f-y) x/sqrt(n), one step is exactly

        P' = (1-r)^2 P,   Q' = (1+r)^2 Q,   r' = (1 - (P+Q) + r s) r,   s = (P-Q)/2,

    where P + Q = eta lambda and s = eta f x/sqrt(n). For label 0, with a = eta lambda and z = s^2, this is
    z' = (1-a+z)^2 z, a' = a - z (4-a), and the phases are exact at every width: the first step raises the
    loss iff a_0 > 2 + z_0; the loss goes to 0 for a_0 < 4 and to infinity for a_0 > 4. At a_0 = 4 it stays
    bounded and does not converge; that is called divergent here. A lazy run with z_0 <= 7/4 never rises; a
    run that starts at f = y stays there and is called lazy. For another label the edges move by O(y^2/n)
    and the phase is read off the run: divergent if it overflows within `steps`, catapult if its loss rises
    above the first, lazy otherwise.

    Args:
        output: f_0. All arguments but `steps` broadcast together.
        curvature: lambda_0 > 0, with lambda_0 >= 2 |f_0 x|/sqrt(n), as Cauchy-Schwarz has it.
        lr: eta > 0.
        width: n >= 1, 2^60 included.
        steps: number of steps, >= 0.
        label: y.
        input: x, not 0.

    Returns:
        WarmUpRun; index 0 of its arrays is the start.

    Raises:
        ValueError: an argument breaks its condition, or no weights have this output and curvature.
        TypeError: an argument is not numeric.

    Example:
        >>> run = simulate(1.0, 2.0, [0.5, 1.25, 2.25], width=2**60, steps=100)
        >>> run.phase.tolist(), bool(1.25 * run.curvature[-1, 1] < 2)
        (['lazy', 'catapult', 'divergent'], True)

    Source: the model is that of Lewkowycz et al. (2020), arXiv 2003.02218; the reduction to (P, Q) and the
    edges at finite width are this project's.

    """
    steps = checked_count("steps", steps, least=0)
    given = _broadcast(output=output, curvature=curvature, width=width, input=input, lr=lr, label=label)
    f, curv, n, x, eta, y = given
    per_output = eta * x / np.sqrt(n)
    a, s = eta * curv, per_output * f
    require("input", x, "other than 0", x != 0)
    possible = 2 * np.abs(s) <= a * (1 + 1e-12)
    require("curvature", curv, ">= 2 |output input| / sqrt(width), as Cauchy-Schwarz has it", possible)
    residuals, curvatures = _iterate(a, s, f - y, per_output, y, steps)
    phase = np.where(y == 0, _phase_by_edges(a, s), _phase_by_run(residuals, curvatures))
    return WarmUpRun(residuals + y, curvatures / eta, residuals, eta.copy(), phase, np.asarray(y == 0))


def _iterate(
    a: FloatArray, s: FloatArray, residual: FloatArray, per_output: FloatArray, y: FloatArray, steps: int
) -> tuple[FloatArray, FloatArray]:
    """Residuals f - y and eta*lambda at every step."""
    shift, r = per_output * y, per_output * residual
    p, q = np.maximum(a / 2 + s, 0.0), np.maximum(a / 2 - s, 0.0)
    residuals, curvatures = (np.empty((steps + 1, *a.shape)) for _ in range(2))
    residuals[0], curvatures[0] = residual, a
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(1, steps + 1):
            r_next = (1.0 - (p + q) + r * (r + shift)) * r
            p, q = (1.0 - r) ** 2 * p, (1.0 + r) ** 2 * q
            split = (p - q) / 2 - shift
            r = np.where(np.abs(split) > SEPARATE * (p + q), split, r_next)
            lost = ~(np.isfinite(r) & np.isfinite(p + q))
            r, p, q = np.where(lost, np.inf, r), np.where(lost, np.inf, p), np.where(lost, np.inf, q)
            residuals[t] = np.where(lost, np.inf, r / per_output)
            curvatures[t] = p + q
    return residuals, curvatures


def _phase_by_edges(a: FloatArray, s: FloatArray) -> NDArray[np.str_]:
    above = np.where(a >= UPPER_EDGE, "divergent", np.where(a > 2 + s**2, "catapult", "lazy"))
    return np.where(s == 0, "lazy", above)


def _phase_by_run(residuals: FloatArray, curvatures: FloatArray) -> NDArray[np.str_]:
    size = np.abs(residuals)
    finite = np.isfinite(size[-1]) & np.isfinite(curvatures[-1])
    return np.where(finite, np.where(size.max(axis=0) > size[0], "catapult", "lazy"), "divergent")


def initial_state(
    width: int, size: int | tuple[int, ...] = (), *, input: float = 1.0, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """Draw outputs and curvatures of the warm-up model with N(0, 1) weights, in their exact law at any width.

    Args:
        width: n >= 1, 2^60 included: no weights are drawn.
        size: shape of the draws.
        input: x.
        seed: of the draws.

    Returns:
        (output, curvature), each of the given shape.

    Raises:
        ValueError: width < 1, or input not finite.

    Example:
        >>> output, curvature = initial_state(2**60, 1000)
        >>> bool(abs(output.std() - 1) < 0.1), bool(np.allclose(curvature, 2.0))
        (True, True)

    Source: Bartlett's decomposition of a Wishart matrix.

    """
    x = checked_number("input", input)
    start = WeightCorrelations.draw(width, 1, size, seed=seed)
    return x * start.uv[..., 0], x**2 * (start.vv + start.uu[..., 0, 0])


LOWER_BY_THEORY = (
    "theory: squared loss, plain gradient descent without momentum, large width (corrections O(1/width)), curvature at "
    "the start on the data that descent sees; a minibatch has a larger one"
)
UPPER_BY_THEORY = (
    "theory for the two-layer linear model with squared loss, exact for one sample with label 0 and up to O(1/width) "
    "otherwise; for other nets a guess that ReLU nets often exceed: measure max_constant"
)


@dataclass(frozen=True)
class LRPhases:
    """Edges of the phases: lazy up to `critical_lr`, catapult up to `max_lr`, divergent above.

    `curvature` is that of the user's own loss. `assumptions` says on what each edge rests; `max_is_theory`
    whether `max_lr` comes from the linear model or from a measured constant.
    """

    curvature: float
    critical_lr: float
    max_lr: float
    max_constant: float
    max_is_theory: bool
    assumptions: Mapping[str, str]

    def phase(self, lr: ArrayLike) -> NDArray[np.str_]:
        """The phase of each rate: "lazy", "catapult" or "divergent"."""
        rate = checked("lr", lr, above=0.0)
        above = np.where(rate < self.max_lr, "catapult", "divergent")
        return np.where(rate <= self.critical_lr, "lazy", above)

    def __str__(self) -> str:
        edges = f"critical_lr {self.critical_lr:.6g}, max_lr {self.max_lr:.6g}"
        reasons = (f"{name}: {text}" for name, text in self.assumptions.items())
        return "\n".join([f"{edges} (curvature {self.curvature:.6g})", *reasons])


def lr_phases(
    curvature: float | EigenResult, *, max_constant: float | None = None, loss_scale: float = 1.0
) -> LRPhases:
    """Compute the edges of the lazy, catapult and divergent phases of the learning rate.

    critical_lr = 2/curvature: above it the loss rises at first. max_lr = c/curvature: above it training fails,
    with c = 4 in the linear model. On other nets c depends on activation, depth and data (about 4 for tanh, 4
    to 12 and more for ReLU): it has to be measured, and none of these numbers is assumed.

    Args:
        curvature: top eigenvalue of the NTK at the start, J J^T/m on the data that gradient descent sees, > 0; or the
            EigenResult of `ntk_top_eigenvalue` (or of `hessian_top_eigenvalue`, with the default loss_scale).
        max_constant: c, measured on nets like this one: > 2. None takes the 4 of the linear model.
        loss_scale: the loss over (1/2m) sum of squares: 2/K for nn.MSELoss with K outputs.

    Returns:
        LRPhases; print it for edges and assumptions.

    Raises:
        ValueError: curvature not positive or not converged, max_constant <= 2, loss_scale <= 0.
        TypeError: an argument is not a number.

    Example:
        >>> phases = lr_phases(8.0)
        >>> phases.critical_lr, phases.max_lr, phases.phase([0.1, 0.3, 0.6]).tolist()
        (0.25, 0.5, ['lazy', 'catapult', 'divergent'])

    Source: Lewkowycz et al. (2020), arXiv 2003.02218.

    """
    if isinstance(curvature, EigenResult):
        if not curvature.converged:
            got = f"a relative residual of {curvature.residual:.1e} after {curvature.matvecs} products"
            raise ValueError(f"curvature must have converged, got {got}")
        curvature = curvature.value
    value = checked_number("curvature", curvature, above=0.0)
    value *= checked_number("loss_scale", loss_scale, above=0.0)
    value = checked_number("curvature*loss_scale", value, above=0.0)
    theory = max_constant is None
    constant = UPPER_EDGE if theory else checked_number("max_constant", max_constant, above=2.0)
    measured = f"the measured constant {constant:g}: as good as the likeness of the nets it was measured on"
    reasons = {"critical_lr": LOWER_BY_THEORY, "max_lr": UPPER_BY_THEORY if theory else measured}
    return LRPhases(value, 2 / value, constant / value, constant, theory, MappingProxyType(reasons))
