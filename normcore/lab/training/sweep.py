"""Sweeps: one experiment at every cell of a grid, on as many processes as joblib is given, resumed at will."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from joblib import hash as content_hash
from numpy.typing import NDArray
from tqdm import tqdm

from normcore.checks import checked_count, require_type, said
from normcore.lab.training.checkpoint import fingerprint, remembered

Cell = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class CellResult:
    """What came of a cell: "done", "diverged" (its result `diverged_at` is a step), "raised" or "lost" (killed)."""

    cell: Mapping[str, Any]
    status: str
    results: Mapping[str, Any]
    error: str = ""


@dataclass(frozen=True, eq=False)
class Sweep:
    """The results of a sweep in the order of its cells: `sweep[3]` is one, `sweep["loss"]` an array over all."""

    cells: list[CellResult]

    def __len__(self) -> int:
        return len(self.cells)

    def __repr__(self) -> str:
        counts = Counter(result.status for result in self.cells)
        return f"Sweep({', '.join(f'{n} {status}' for status, n in sorted(counts.items())) or 'no cells'})"

    def where(self, **settings: Any) -> "Sweep":
        """The cells that have all these settings."""
        return Sweep([r for r in self.cells if all(r.cell.get(k) == v for k, v in settings.items())])

    def __getitem__(self, item: int | str) -> "CellResult | NDArray[Any]":
        """A cell, or one result (nan where a cell has none) or setting of all; KeyError where no cell has it."""
        if isinstance(item, int):
            return self.cells[item]
        found = [result.results.get(item, result.cell.get(item)) for result in self.cells]
        there = [np.asarray(value) for value in found if value is not None]
        if not there:
            errors = "".join(f"; {result.error}" for result in self.cells if result.error)
            raise KeyError(f"no cell has a result or setting {item!r}{errors[:300]}")
        return np.stack([np.full(there[0].shape, np.nan) if v is None else np.asarray(v) for v in found])


def grid(**lists: Iterable[Any]) -> list[dict[str, Any]]:
    """List all combinations, the last name running fastest.

    Example:
        >>> grid(lr=[0.1, 0.2], seed=range(2))
        [{'lr': 0.1, 'seed': 0}, {'lr': 0.1, 'seed': 1}, {'lr': 0.2, 'seed': 0}, {'lr': 0.2, 'seed': 1}]

    """
    for name, values in lists.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise TypeError(f"{name} must be a list of settings, got {said(values)}")
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def sweep(
    experiment: Callable[..., Mapping[str, Any]],
    cells: Iterable[Cell],
    *,
    folder: str | Path | None = None,
    workers: int | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Compute an experiment at every cell, and keep what is finished.

    A cell that diverges, raises or kills its process costs only itself. Every cell is computed with one torch thread
    and with torch's generators seeded by its `seed` (0 without one), so that results do not depend on order or place.

    Args:
        experiment: called as `experiment(**cell)`, returns a dict of numbers, strings and arrays; a result `diverged_at`
            that is not None means that the cell diverged. With workers it must be importable or a notebook's function.
        cells: dicts, from `grid` or by hand.
        folder: where finished cells are kept, so that the same call computes what is missing, raised or was lost. A
            result belongs to the code of the experiment, to what that holds (say the arguments of a `partial`) and to
            the cell; not to the functions that it calls.
        workers: processes; by default those of a surrounding `joblib.parallel_config`, whose backend ("dask", ...)
            is used too, or this process alone.
        progress: whether to show a bar; by default on a terminal.

    Example:
        >>> def experiment(lr, seed):
        ...     return {"loss": lr + seed, "diverged_at": 3 if lr > 1 else None}
        >>> result = sweep(experiment, grid(lr=[0.5, 2.0], seed=[0, 1]))
        >>> result, result.where(lr=0.5)["loss"].tolist()
        (Sweep(2 diverged, 2 done), [0.5, 1.5])

    """
    require_type("experiment", experiment, Callable, "a function")
    require_type("cells", cells, Iterable, "a list of dicts")
    cells = list(cells)
    for cell in cells:
        require_type("cells", cell, Mapping, "a list of dicts")
    require_type("folder", folder, str | Path | None, "a path or None")
    require_type("progress", progress, bool | None, "a bool or None")
    if workers is not None and checked_count("workers", workers, least=-(2**31)) == 0:
        raise ValueError("workers must be other than 0, got 0")
    kept = None if folder is None else Path(folder, fingerprint(experiment).split()[-1])
    todo = dict(enumerate(map(dict, cells)))
    with tqdm(total=len(todo), disable=None if progress is None else not progress, leave=False) as bar:
        found = _gather(partial(_attempt, experiment, kept), todo, workers, bar.update)
    return Sweep([found[i] for i in todo])


def _gather(attempt: Any, todo: Mapping[int, Cell], workers: int | None, done: Any) -> dict[int, CellResult]:
    """All results. Where a worker is killed joblib gives up all; each half goes on alone, down to the cell that kills."""
    found: dict[int, CellResult] = {}
    try:  # workers of a sweep that is killed end with their cell, and not minutes later
        options: Any = {"return_as": "generator_unordered", "batch_size": 1, "idle_worker_timeout": 10}
        run = Parallel(n_jobs=workers, **options)
        for index, result in run(delayed(attempt)(i, cell) for i, cell in todo.items()):
            found[index] = result
            done()
    except Exception as error:
        if "Worker" not in type(error).__name__:  # joblib's TerminatedWorkerError, Dask's KilledWorker
            raise
        left = [i for i in todo if i not in found]
        if len(todo) == 1 and left:
            done()
            return {left[0]: CellResult(todo[left[0]], "lost", {}, f"{type(error).__name__}: {error}")}
        for half in filter(None, (left[::2], left[1::2])):
            found |= _gather(attempt, {i: todo[i] for i in half}, workers, done)
    return found


def _attempt(experiment: Any, kept: Path | None, index: int, cell: Cell) -> tuple[int, CellResult]:
    """One cell, whatever comes of it; an error is not kept, and is tried again by the next call."""
    path = None if kept is None else kept / f"{content_hash(cell)}.pt"
    try:
        results = remembered(path, lambda: _computed(experiment, cell))
    except Exception as error:
        return index, CellResult(cell, "raised", {}, f"{type(error).__name__}: {error}")
    plain = {name: v.numpy()[()] if isinstance(v, torch.Tensor) else v for name, v in results.items()}
    return index, CellResult(cell, "done" if plain.get("diverged_at") is None else "diverged", plain)


def _computed(experiment: Callable[..., Mapping[str, Any]], cell: Cell) -> dict[str, Any]:
    """One cell: plain numbers and strings as they are, all else as tensors on the processor."""
    threads = torch.get_num_threads()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(cell.get("seed", 0))
            results = dict(experiment(**cell))
    finally:
        torch.set_num_threads(threads)
    for name, value in results.items():
        if isinstance(value, torch.Tensor):
            results[name] = value.detach().cpu()
        elif type(value) not in (type(None), bool, int, float, str):
            results[name] = torch.as_tensor(np.asarray(value))
    return results
