"""The phases of the learning rate for a curvature at hand, with what is theory and what is measured told apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normcore.catapult.warm_up import UPPER_EDGE
from normcore.checks import checked, checked_number
from normcore.curvature.operator import EigenResult

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
    reasons = MappingProxyType(
        {"critical_lr": LOWER_BY_THEORY, "max_lr": UPPER_BY_THEORY if theory else measured}
    )
    return LRPhases(value, 2 / value, constant / value, constant, theory, reasons)
