"""Closed forms of the warm-up model: edges, duration, peak, and the curvature where a run ends."""

import numpy as np
from numpy.typing import ArrayLike

from normcore.checks import checked
from normcore.schedules import FloatArray

UPPER_EDGE = 4.0
"""eta lambda_0 at and above which the run with label 0 does not converge, for every width."""


def edges(
    output: ArrayLike, curvature: ArrayLike, width: ArrayLike, *, input: ArrayLike = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Compute the two exact edges in the learning rate for label 0.

    The lower edge is the smaller root of eta lambda = 2 + eta^2 f^2 x^2/n, above which the first step raises
    the loss: 2/lambda (1 + O(1/n)). The upper edge is 4/lambda. Where the lower one would lie at or above the
    upper one (widths of a few), no first step raises the loss and it is NaN.

    Args:
        output: f_0; the arguments broadcast together.
        curvature: lambda_0 > 0.
        width: n >= 1.
        input: x.

    Returns:
        (lower, upper).

    Raises:
        ValueError: an argument breaks its condition.

    Example:
        >>> lower, upper = edges(1.0, 2.0, 1000)
        >>> round(float(lower), 4), float(upper)
        (1.0005, 2.0)

    Source: this project.

    """
    f, curv = checked("output", output), checked("curvature", curvature, above=0.0)
    n, x = checked("width", width, least=1.0), checked("input", input)
    discriminant = curv**2 - 8 * (f * x) ** 2 / n
    upper = UPPER_EDGE / curv
    lower = 4 / (curv + np.sqrt(np.maximum(discriminant, 0.0)))
    lower = np.where((discriminant > 0) & (lower < upper), lower, np.nan)
    return lower, np.broadcast_to(upper, lower.shape)


def duration(scaled_curvature: ArrayLike, width: ArrayLike) -> FloatArray:
    """Compute the steps a catapult takes to reach outputs of order sqrt(n).

    t* = ln n / (2 ln(eta lambda_0 - 1)), up to a constant that does not depend on n: while f is small it
    grows by eta lambda_0 - 1 a step, from O(1) to O(sqrt n).

    Args:
        scaled_curvature: eta lambda_0, in (2, 4).
        width: n >= 1.

    Returns:
        t*, in steps.

    Raises:
        ValueError: an argument breaks its condition.

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
        scaled_curvature: eta lambda_0, in (2, 4).

    Returns:
        eta lambda_inf.

    Raises:
        ValueError: scaled_curvature outside (2, 4).

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
        scaled_curvature: eta lambda_0, in (2, 4).

    Returns:
        z at the peak.

    Raises:
        ValueError: scaled_curvature outside (2, 4).

    Example:
        >>> round(float(peak(2.1)), 5)
        0.00533

    Source: this project.

    """
    delta = _catapult_range(scaled_curvature) - 2
    return np.asarray(delta**2 / 2 + delta**3 / 3)


def _catapult_range(scaled_curvature: ArrayLike) -> FloatArray:
    """The argument, checked to lie in (2, 4)."""
    a = checked("scaled_curvature", scaled_curvature, above=2.0)
    if np.any(a >= UPPER_EDGE):
        raise ValueError(f"scaled_curvature must be < 4, got {float(a.max())!r}")
    return a
