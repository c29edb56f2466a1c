"""Weight decay, exponential learning rates and scale invariance: the tested core of a book.

`import normcore as nc` needs torch and numpy only. The laboratory of the book's experiments is
`normcore.lab`.
"""

from normcore import catapult
from normcore.balance import rho
from normcore.checkpoint import convert_checkpoint
from normcore.equilibrium import Equilibrium, equilibrium
from normcore.equivalence import equivalent_schedule
from normcore.exp_lr import ExpLR
from normcore.follow import follow
from normcore.gauge import growth_factor
from normcore.groups import param_groups
from normcore.hessian import hessian_top_eigenvalue
from normcore.homogeneity import norm_input_degrees
from normcore.invariance import InvarianceReport, scale_invariance
from normcore.lr_phases import lr_phases
from normcore.monitor import NormMonitor
from normcore.ntk import ntk_top_eigenvalue
from normcore.rates import effective_lr, intrinsic_lr
from normcore.relaxation import relaxation, time_to_equilibrium
from normcore.schedules import Constant, Cosine, Exponential, StepDecay
from normcore.sharpness import SharpnessMonitor
from normcore.spectrum import EigenResult
from normcore.theorems import equivalent_weight_decay, exponential_lr, texp, texp_plus_plus
from normcore.wd_free_run import EquivalentSchedule

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
    "norm_input_degrees",
    "param_groups",
    "scale_invariance",
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
    "hessian_top_eigenvalue",
    "lr_phases",
    "ntk_top_eigenvalue",
    # the same on a torch optimizer
    "ExpLR",
    "convert_checkpoint",
    "follow",
]
