"""Run a stock optimizer along a schedule that was computed beforehand."""

import math

from torch.optim import Optimizer

from normcore.group_gauge import scale_buffers, shift_buffer
from normcore.wd_free_run import EquivalentSchedule


def follow(optimizer: Optimizer, schedule: EquivalentSchedule, t: int) -> None:
    """Prepare a stock optimizer for step t of the run without weight decay; call it before `optimizer.step()`.

    Multiplies the momentum buffer by the gains, adds the correction where there is one, and sets lr, momentum
    and weight_decay=0. Where some groups are tagged `scale_invariant=True` only those follow; otherwise all
    do. Needs the whole schedule in the float range; `ExpLR` does not.

    Args:
        optimizer: SGD with the momentum and nesterov flag of the original run, or AdamW.
        schedule: from `equivalent_schedule`, `texp` and so on.
        t: the step, 0 <= t < schedule.steps; every step must be followed, in order.

    Raises:
        ValueError: t is out of range.
        OverflowError: the rate exceeds the float range.

    Example:
        >>> import torch
        >>> from normcore.theorems import texp_plus_plus
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0, momentum=0.9)
        >>> follow(optimizer, texp_plus_plus(0.1, 0.5, 0.9, steps=2), 0)
        >>> round(optimizer.param_groups[0]["lr"], 6), optimizer.param_groups[0]["weight_decay"]
        (0.105263, 0.0)

    Source: Li & Arora (2020), arXiv 1910.07454, Theorems 2.12 and 2.13.

    """
    if not 0 <= t < schedule.steps:
        raise ValueError(f"t must be in [0, {schedule.steps}), got {t!r}")
    lr = math.exp(schedule.log_lr[t])
    groups = [g for g in optimizer.param_groups if g.get("scale_invariant")] or optimizer.param_groups
    params = [p for group in groups for p in group["params"]]
    if t > 0:
        scale_buffers(optimizer, params, float(schedule.gain_after[t - 1]))
    if t in schedule.corrections:
        shift_buffer(optimizer, params, schedule.corrections[t])
    scale_buffers(optimizer, params, float(schedule.gain_before[t]))
    for group in groups:
        group.update(lr=lr, weight_decay=0.0)
        if "momentum" in group:
            group["momentum"] = float(schedule.momentum[t])
