"""A few cells of a sweep, computed: whatever happens to a cell becomes its result."""

import contextlib
import importlib
import importlib.util
import pickle
import random
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from normcore.lab.results import Cell, CellResult, as_arrays, cell_key, diverged

Experiment = Callable[..., Any]
Job = Sequence[Cell]

_TURN = threading.RLock()
"""Seeds and the number of threads belong to the process: its threads take turns."""


class CannotLoadError(TypeError):
    """The experiment does not exist on the other side."""


@contextlib.contextmanager
def own_randomness(cell: Cell) -> Iterator[None]:
    """Seed the generators of torch, numpy and Python from the cell, and put them back.

    Threads of Dask draw from Python's `random` while a cell is computed: there it is not the cell's own.

    Example:
        >>> with own_randomness({"lr": 0.1}):
        ...     first = torch.rand(())
        >>> with own_randomness({"lr": 0.1}):
        ...     bool(torch.rand(()) == first)
        True

    """
    states = random.getstate(), np.random.get_state()
    seed = int(cell_key(cell)[:8], 16)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def run_cell(experiment: Experiment, cell: Cell) -> CellResult:
    """Compute one cell with generators seeded by it; an error becomes its result.

    Example:
        >>> result = run_cell(lambda lr: {"loss": 1 / lr}, {"lr": 0})
        >>> result.status, result.error.splitlines()[-1]
        ('raised', 'ZeroDivisionError: division by zero')

    """
    start = time.perf_counter()
    try:
        with own_randomness(cell):
            results = as_arrays(experiment(**cell))
    except (Exception, SystemExit):
        return CellResult(cell, "raised", {}, traceback.format_exc(), time.perf_counter() - start)
    return _finished(cell, results, time.perf_counter() - start)


def run_job(experiment: Experiment, job: Job, together: bool) -> list[CellResult]:
    """Compute the cells of a job with one thread, one after another or by `experiment.together(cells)`.

    Where that raises, the cells are computed one by one, so that an error costs only its own.
    """
    with _TURN, one_thread():
        if together and len(job) > 1:
            start = time.perf_counter()
            try:
                outcomes = [as_arrays(outcome) for outcome in experiment.together(list(job))]  # type: ignore[attr-defined]
            except Exception as error:
                warnings.warn(f"{len(job)} cells are computed one by one: {error!r}", stacklevel=2)
                return [run_cell(experiment, cell) for cell in job]
            seconds = (time.perf_counter() - start) / len(job)
            return [_finished(cell, results, seconds) for cell, results in zip(job, outcomes, strict=True)]
        return [run_cell(experiment, cell) for cell in job]


def _finished(cell: Cell, results: dict[str, Any], seconds: float) -> CellResult:
    """The result of a cell that came to an end."""
    return CellResult(cell, "diverged" if diverged(results) else "done", results, None, seconds)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one torch thread: results are then the same wherever they are computed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def dump(experiment: Experiment) -> bytes:
    """Pickle an experiment for other processes; cloudpickle, where installed, takes functions of a notebook too.

    Raises:
        TypeError: it cannot be pickled.

    """
    found = importlib.util.find_spec("cloudpickle")
    pickler: Any = pickle if found is None else importlib.import_module("cloudpickle")
    try:
        data: bytes = pickler.dumps(experiment)
    except Exception as error:
        raise TypeError(f"experiment must be picklable to leave this process, got {error}") from error
    return data


def load(payload: bytes) -> Experiment:
    """Load a pickled experiment.

    Raises:
        CannotLoadError: what it is made of cannot be imported here.

    """
    try:
        experiment: Experiment = pickle.loads(payload)
    except Exception as error:
        remedy = "define it in a module that the workers can import"
        raise CannotLoadError(f"experiment cannot be loaded in a worker ({error}); {remedy}") from None
    return experiment


def run_dumped(payload: bytes, job: Job, together: bool) -> list[CellResult]:
    """Load a pickled experiment and compute a job: what executors are given."""
    return run_job(load(payload), job, together)
