"""Worker processes that compute the cells of a sweep, and may die doing so."""

import contextlib
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from typing import Any, ClassVar

import torch

from normcore.lab.jobs import Experiment, Job, dump, load, run_job
from normcore.lab.results import Cell, CellResult

PRELOADED = ["normcore.lab.experiment", "torch._dynamo", "torch._decomp"]
"""What the server of the workers imports, once in a session; a worker then starts in a tenth of a second."""

FIRST_START, LATER_START = 5.0, 0.3
"""Seconds to start the first workers of a session, and others, as long as it has not been measured."""

MEETING_SECONDS = 20.0
"""How long workers wait for each other before they are timed together."""

_payload = b""
_experiment: Experiment | None = None
_barrier: Any = None


class Workers:
    """A pool of worker processes that know an experiment; use it in a `with` statement.

    The pool is that of `concurrent.futures`, its processes are forked from a server process that has imported
    torch and done nothing else, and each computes with one thread.

    Args:
        payload: the pickled experiment.
        count: how many processes, >= 1.

    Raises:
        RuntimeError: no worker starts.
        CannotLoadError: a worker cannot load the experiment.

    """

    expected_start: ClassVar[float] = FIRST_START
    """Seconds that the next start will take: the server's imports once, then what the last start took."""

    def __init__(self, payload: bytes, count: int) -> None:
        """Start, and make sure that a worker answers."""
        began, first = time.perf_counter(), Workers.expected_start == FIRST_START
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        settings = (payload, context.Barrier(count))
        self.pool, self.count = ProcessPoolExecutor(count, context, _set_up, settings), count
        try:
            self.pool.submit(_answers).result()
            Workers.expected_start = LATER_START if first else time.perf_counter() - began
        except BrokenExecutor as error:
            self.close()
            remedy = "a script that sweeps must do so under `if __name__ == '__main__':`"
            raise RuntimeError(f"no worker process starts; {remedy}") from error
        except BaseException:
            self.close(kill=True)
            raise

    def submit(self, job: Job, together: bool) -> "Future[list[CellResult]]":
        """Send a job."""
        return self.pool.submit(_run_job, job, together)

    def all_at_once(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call `function(experiment, *args)` in every worker at the same time."""
        futures = [self.pool.submit(_after_meeting, function, *args) for _ in range(self.count)]
        return [future.result() for future in futures]

    def close(self, kill: bool = False) -> None:
        """End the processes, after their work or at once."""
        if kill:
            for process in list((getattr(self.pool, "_processes", None) or {}).values()):
                process.kill()
        self.pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Workers":
        """Return itself."""
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Close; an error does not wait for cells under way."""
        self.close(kill=error is not None)


def run_in_workers(
    experiment: Experiment, jobs: Sequence[Job], together: bool, count: int, first: Workers | None = None
) -> Generator[list[CellResult], None, None]:
    """Compute jobs in worker processes, at most one for each at a time.

    Where a process dies, the jobs that were being computed are suspects, and their cells are computed again,
    each in a process of its own: the one that dies there too is lost.

    Args:
        experiment: any picklable callable.
        jobs: cells to be computed.
        together: whether the cells of a job are computed by `experiment.together`.
        count: how many processes.
        first: workers of this experiment that are already there; they are closed.

    Yields:
        The results of a job, as jobs finish.

    """
    payload, waiting = dump(experiment), list(jobs)[::-1]
    while waiting:
        with first or Workers(payload, min(count, len(waiting))) as workers:
            first = None
            suspects = yield from _until_one_dies(workers, waiting, together)
        for job in suspects:
            for cell in job:
                yield [_alone(payload, cell)]


def _until_one_dies(
    workers: Workers, waiting: list[Job], together: bool
) -> Generator[list[CellResult], None, list[Job]]:
    """Compute the waiting jobs; returns those that were under way when a worker died."""
    running, suspects, broken = dict[Future[list[CellResult]], Job](), list[Job](), False
    while running or (waiting and not broken):
        while waiting and not broken and len(running) < workers.count:
            try:
                future = workers.submit(waiting[-1], together)
            except BrokenExecutor:
                broken = True
            else:
                running[future] = waiting.pop()
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            if isinstance(future.exception(), BrokenExecutor):
                suspects.append(job)
                broken = True
            else:
                yield future.result()
    return suspects


def _alone(payload: bytes, cell: Cell) -> CellResult:
    """Compute a cell in a process of its own, which it may kill."""
    start = time.perf_counter()
    with Workers(payload, 1) as worker:
        try:
            return worker.submit([cell], False).result()[0]
        except BrokenExecutor as error:
            return CellResult(cell, "lost", {}, f"its process died: {error}", time.perf_counter() - start)


# ---------------------------------------------------------------- inside a worker


def _set_up(payload: bytes, barrier: Any) -> None:
    """Make a worker: one thread, and Ctrl-C is for the parent."""
    global _payload, _barrier
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _payload, _barrier = payload, barrier


def _known() -> Experiment:
    """The worker's experiment, loaded once."""
    global _experiment
    if _experiment is None:
        _experiment = load(_payload)
    return _experiment


def _answers() -> bool:
    """Whether the worker has its experiment."""
    return _known() is not None


def _run_job(job: Job, together: bool) -> list[CellResult]:
    """Compute a job."""
    return run_job(_known(), job, together)


def _after_meeting(function: Callable[..., Any], *args: Any) -> Any:
    """Wait for the other workers, then call a function of the experiment."""
    with contextlib.suppress(threading.BrokenBarrierError):  # timed alone is better than not at all
        _barrier.wait(MEETING_SECONDS)
    return function(_known(), *args)
