"""Weight decay, exponential learning rates and scale invariance: the tested core of a book.

`import normcore as nc` needs torch and numpy only. The laboratory of the book's experiments is
`normcore.lab`.
"""

from normcore import catapult
from normcore.catapult.warm_up import lr_phases
from normcore.curvature.hessian import (
    SharpnessMonitor,
    hessian_eigenvalues,
    hessian_top_eigenvalue,
    hessian_trace,
)
from normcore.curvature.ntk import ntk_top_eigenvalue
from normcore.curvature.operator import EigenResult
from normcore.doctor.examination import diagnose
from normcore.doctor.findings import Diagnosis
from normcore.equivalence.checkpoint import convert_checkpoint
from normcore.equivalence.gauge import growth_factor
from normcore.equivalence.optimizer import ExpLR
from normcore.equivalence.schedule import EquivalentSchedule, equivalent_schedule, follow
from normcore.equivalence.theorems import equivalent_weight_decay, exponential_lr, texp, texp_plus_plus
from normcore.invariance.degrees import norm_input_degrees
from normcore.invariance.report import InvarianceReport, param_groups, scale_invariance
from normcore.invariance.symmetries import ScalingSymmetries, scaling_symmetries
from normcore.norm_dynamics.equilibrium import Equilibrium, equilibrium, relaxation, time_to_equilibrium
from normcore.norm_dynamics.monitor import NormMonitor
from normcore.norm_dynamics.rates import effective_lr, intrinsic_lr
from normcore.norm_dynamics.readings import rho
from normcore.schedules import Constant, Cosine, Exponential, StepDecay

__all__ = [
    # schedules
    "Constant",
    "Cosine",
    "Exponential",
    "StepDecay",
    # weight decay as an exponential learning rate
    "EquivalentSchedule",
    "equivalent_schedule",
    "equivalent_weight_decay",
    "exponential_lr",
    "growth_factor",
    "texp",
    "texp_plus_plus",
    # which parameters are scale-invariant
    "InvarianceReport",
    "ScalingSymmetries",
    "norm_input_degrees",
    "param_groups",
    "scale_invariance",
    "scaling_symmetries",
    # the equilibrium of a normalized net
    "Equilibrium",
    "NormMonitor",
    "effective_lr",
    "equilibrium",
    "intrinsic_lr",
    "relaxation",
    "rho",
    "time_to_equilibrium",
    # curvature and the catapult
    "EigenResult",
    "SharpnessMonitor",
    "catapult",
    "hessian_eigenvalues",
    "hessian_top_eigenvalue",
    "hessian_trace",
    "lr_phases",
    "ntk_top_eigenvalue",
    # the same on a torch optimizer
    "ExpLR",
    "convert_checkpoint",
    "follow",
    # what a run will do
    "Diagnosis",
    "diagnose",
]
