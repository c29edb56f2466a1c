"""The catapult in models that can be solved (chapters 15 to 19): exact updates, phases and their edges, at any width.

`simulate` follows the warm-up model of one sample, `simulate_full` that of many inputs and samples.
"""

from normcore.catapult.many_inputs import FullRun, WeightCorrelations, simulate_full
from normcore.catapult.warm_up import (
    WarmUpRun,
    duration,
    edges,
    final_curvature,
    initial_state,
    peak,
    simulate,
)

__all__ = [
    "FullRun",
    "WarmUpRun",
    "WeightCorrelations",
    "simulate",
    "simulate_full",
    "duration",
    "edges",
    "final_curvature",
    "initial_state",
    "peak",
]
