"""Weight decay, exponential learning rates and scale invariance: the tested core of a book.

`import normcore as nc` needs torch and numpy only. The laboratory of the book's experiments is
`normcore.lab`.
"""

from normcore.checkpoint import convert_checkpoint
from normcore.equivalence import equivalent_schedule
from normcore.exp_lr import ExpLR
from normcore.follow import follow
from normcore.gauge import growth_factor
from normcore.groups import param_groups
from normcore.homogeneity import norm_input_degrees
from normcore.invariance import InvarianceReport, scale_invariance
from normcore.schedules import Constant, Cosine, Exponential, StepDecay
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
    # the same on a torch optimizer
    "ExpLR",
    "convert_checkpoint",
    "follow",
]
