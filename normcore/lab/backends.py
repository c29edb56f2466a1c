"""Where the cells of a sweep are computed: in this process, in worker processes, or wherever an executor sends them."""

import time
from collections.abc import Generator, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any

from normcore.lab.jobs import CannotLoadError, Experiment, Job, dump, run_dumped, run_job
from normcore.lab.plans import Plan, cpu_count, fastest, split
from normcore.lab.results import Cell, CellResult
from normcore.lab.workers import run_in_workers

BACKENDS = ("auto", "loop", "vmap", "processes")


def make_plan(experiment: Experiment, cells: Sequence[Cell], backend: str, workers: int | None) -> Plan:
    """Turn the arguments of `sweep` into a plan.

    Args:
        experiment: any callable.
        cells: those to be computed.
        backend: "auto", "loop", "vmap" or "processes".
        workers: processes; None is all cores for "auto" and "processes", and this process for "vmap".

    Raises:
        ValueError: the backend is unknown, workers is below 1, or "vmap" is asked of an experiment that has no
            `together`.

    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {list(BACKENDS)}, got {backend!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers!r}")
    if backend == "vmap" and not hasattr(experiment, "together"):
        raise ValueError(
            f"backend 'vmap' needs an experiment with a method together(cells), got {experiment!r}"
        )
    cores = cpu_count() if workers is None else workers
    if backend == "auto":
        return fastest(experiment, cells, cores)
    if backend == "loop":
        return Plan(False, 1)
    return Plan(backend == "vmap", (workers or 1) if backend == "vmap" else cores)


def run(experiment: Experiment, cells: Sequence[Cell], plan: Plan) -> Generator[list[CellResult], None, None]:
    """Compute cells as planned; yields the results of each job as it ends."""
    jobs = split(cells, plan)
    if plan.workers > 1:
        yield from run_in_workers(experiment, jobs, plan.together, plan.workers, plan.pool)
    else:
        for job in jobs:
            yield run_job(experiment, job, plan.together)


def run_in_executor(
    experiment: Experiment, jobs: Sequence[Job], together: bool, executor: Any
) -> Generator[list[CellResult], None, None]:
    """Submit all jobs to an executor; yields the results of each as it ends.

    Args:
        experiment: any picklable callable.
        jobs: cells to be computed.
        together: as in `run_job`.
        executor: anything whose `submit(function, *args)` returns something with `done()` and `result()`.

    Raises:
        CannotLoadError: the other side cannot load the experiment.
        RuntimeError: the executor broke, and does not say at which cell.

    """
    payload = dump(experiment)
    pending = [(executor.submit(run_dumped, payload, job, together), job) for job in jobs]
    try:
        pause = 0.001
        while pending:
            ended = [entry for entry in pending if entry[0].done()]
            pending = [entry for entry in pending if not any(entry is e for e in ended)]
            for future, job in ended:
                yield _collect(future, job)
            pause = 0.001 if ended else min(2 * pause, 0.5)
            time.sleep(pause if pending else 0)
    finally:
        for future, _ in pending:
            getattr(future, "cancel", bool)()


def _collect(future: Any, job: Job) -> list[CellResult]:
    """The results of a job, lost where its process was."""
    try:
        results: list[CellResult] = future.result()
    except CannotLoadError:
        raise
    except BrokenExecutor as error:
        remedy = "finished cells are kept where there is a folder; sweep again with a new executor"
        raise RuntimeError(f"the executor broke ({error}), perhaps at {dict(job[0])}; {remedy}") from error
    except Exception as error:
        return [CellResult(cell, "lost", {}, f"{type(error).__name__}: {error}") for cell in job]
    return results
