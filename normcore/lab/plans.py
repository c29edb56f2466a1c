"""The fastest way to compute the cells of a sweep.

How: one after another, or many at once by the experiment's own `together`. Where: in this process, or in worker
processes.
"""

import math
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from normcore.lab.jobs import Experiment, Job, dump, one_thread
from normcore.lab.results import Cell
from normcore.lab.workers import Workers

LARGEST_JOB = 32
"""Cells that are computed together, and written to disk together."""

VMAP_IMPORT = 1.5
"""Seconds for the first vmap of a session."""

MANY = 20
"""Steps that are timed where two are lost in what comes before the first."""

GAIN = 1.5
"""Workers are started to be timed where they could save this many times their start."""

BUSY = 1.5
"""Processes that want to run for each core, above which workers are not tried."""

HOPELESS = 1.5
"""A way that is so many times slower than the other in this process is not timed in workers."""


@dataclass(frozen=True)
class Plan:
    """How a sweep is computed.

    Attributes:
        together: whether many cells at once, by the experiment's `together`.
        workers: processes; 1 is this one.
        seconds: what "auto" expected of each way it timed.
        pool: worker processes that were started to be timed, to be used.

    """

    together: bool
    workers: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    pool: Workers | None = None

    def __str__(self) -> str:
        """As in `Sweep.backend`."""
        return _name(self.together, self.workers)


def cpu_count() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split(cells: Sequence[Cell], plan: Plan) -> list[Job]:
    """Cut cells into jobs: single ones, or equal parts for all workers."""
    if not plan.together:
        return [[cell] for cell in cells]
    count = plan.workers * math.ceil(len(cells) / (plan.workers * LARGEST_JOB))
    size = max(1, math.ceil(len(cells) / max(count, 1)))
    return [cells[i : i + size] for i in range(0, len(cells), size)]


def fastest(experiment: Experiment, cells: Sequence[Cell], cores: int) -> Plan:
    """Time a few steps of each way to compute the cells, and take the one that is expected to end first.

    Each way takes a + b steps seconds: one run of one step and one of two more give a and b, after a first one
    that is not counted; where a hides b, twenty more. A way whose start alone costs more than it could save is not tried. An experiment
    without `shortened`, or whose first cell raises an error, cannot be timed: processes then, where there are
    more cells than one and more cores.

    Args:
        experiment: any callable; with `shortened(steps)` and `steps` it can be timed, with `together` computed
            many cells at once.
        cells: those to be computed.
        cores: how many processes may work at once.

    Returns:
        Plan.

    """
    cores = min(cores, len(cells))
    if len(cells) < 2:
        return Plan(False, 1)
    if not hasattr(experiment, "shortened"):
        return Plan(False, cores)
    try:
        seconds = {_name(False, 1): _predict(experiment, cells, Plan(False, 1))}
    except Exception:  # the first cell's own, and what becomes of it is for the sweep to record
        return Plan(False, cores)
    loaded = "torch._dynamo" in sys.modules
    if hasattr(experiment, "together") and (loaded or seconds["loop"] > 2 * VMAP_IMPORT):
        _try_together(experiment, cells, seconds)
    pool, saved = None, min(seconds.values()) * (1 - 1 / cores)
    if saved > GAIN * Workers.expected_start and not _busy():
        pool = _try_workers(experiment, cells, cores, seconds)
    plans = [Plan(together, n, seconds) for together in (False, True) for n in (1, cores)]
    plan = min(plans, key=lambda plan: seconds.get(str(plan), math.inf))
    if pool is not None and plan.workers == 1:
        pool.close()
        return plan
    return replace(plan, pool=pool)


def _try_together(experiment: Experiment, cells: Sequence[Cell], seconds: dict[str, float]) -> None:
    """Time the cells together; say so where they cannot be."""
    try:
        seconds[_name(True, 1)] = _predict(experiment, cells, Plan(True, 1))
    except Exception as error:
        warnings.warn(f"these cells are not computed together: {error}", stacklevel=5)


def _try_workers(
    experiment: Experiment, cells: Sequence[Cell], cores: int, seconds: dict[str, float]
) -> Workers | None:
    """Time the ways that are not hopeless in worker processes, all of them busy; returns the workers."""
    pool, best = None, min(seconds.values())
    try:
        pool = Workers(dump(experiment), cores)
        for together, alone in ((False, "loop"), (True, "vmap")):
            if seconds.get(alone, math.inf) < HOPELESS * best:
                plan = Plan(together, cores)
                seconds[str(plan)] = max(pool.all_at_once(_predict, cells, plan))
    except Exception as error:
        warnings.warn(f"these cells are not computed in worker processes: {error}", stacklevel=5)
    except BaseException:
        if pool is not None:
            pool.close(kill=True)
        raise
    return pool


def _busy() -> bool:
    """Whether so many processes want the cores that more would gain nothing."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > BUSY * cpu_count()


def _predict(experiment: Any, cells: Sequence[Cell], plan: Plan) -> float:
    """Expected seconds for all cells, from the first job."""
    jobs = split(cells, plan)
    job = jobs[0]

    def timed(steps: int, cells: Job) -> float:
        short, start = experiment.shortened(steps), time.perf_counter()
        if plan.together:
            short.together(cells)
        else:
            short(**cells[0])
        return time.perf_counter() - start

    with one_thread():
        timed(1, job[:2])
        one, more = timed(1, job), 2
        few = timed(1 + more, job)
        if few - one < one / 2:
            more = MANY
            few = timed(1 + more, job)
    step = max(few - one, few / 20) / more
    rounds = len(jobs) / plan.workers
    whole: float = max(one - step, 0.0) + step * experiment.steps
    return whole * (math.ceil(rounds) if plan.together else rounds)


def _name(together: bool, workers: int) -> str:
    """What a way is called."""
    if workers == 1:
        return "vmap" if together else "loop"
    return f"vmap in {workers} processes" if together else f"{workers} processes"
