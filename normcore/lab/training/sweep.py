"""Sweeps: one experiment at every cell of a grid, on as many processes as joblib is given, resumed at will."""

import inspect
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Memory, Parallel, delayed
from joblib import hash as content_hash
from numpy.typing import NDArray
from tqdm import tqdm

Cell = Mapping[str, Any]


def grid(**lists: Iterable[Any]) -> list[dict[str, Any]]:
    """List all combinations, the last name running fastest.

    Example:
        >>> grid(lr=[0.1, 0.2], seed=range(2))
        [{'lr': 0.1, 'seed': 0}, {'lr': 0.1, 'seed': 1}, {'lr': 0.2, 'seed': 0}, {'lr': 0.2, 'seed': 1}]

    """
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


@dataclass(frozen=True, eq=False)
class CellResult:
    """What came of a cell: "done", "diverged" (its result `diverged_at` is a step), "raised" or "lost" (killed)."""

    cell: Cell
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
        """A cell, or one result (nan where a cell has none) or setting of all cells.

        Raises:
            KeyError: no cell has a result or setting of that name.

        """
        if isinstance(item, int):
            return self.cells[item]
        found = [result.results.get(item, result.cell.get(item)) for result in self.cells]
        there = [np.asarray(value) for value in found if value is not None]
        if not there:
            raise KeyError(f"no cell has a result or setting {item!r}")
        return np.stack([np.full(there[0].shape, np.nan) if v is None else np.asarray(v) for v in found])


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
    and with torch's generator seeded by its `seed` (0 without one), so that results do not depend on order or place.

    Args:
        experiment: called as `experiment(**cell)`, returns a dict of numbers and arrays; a result `diverged_at` that
            is not None means that the cell diverged. With workers it must be importable or a notebook's function.
        cells: dicts, from `grid` or by hand.
        folder: where finished cells are kept, so that the same call computes what is missing, raised or was lost.
            A result belongs to the source of the experiment, the arguments of a `partial`, and the cell.
        workers: processes; by default those of a surrounding `joblib.parallel_config`, whose backend ("dask", ...)
            is used too, or this process alone.
        progress: whether to show a bar; by default on a terminal.

    Returns:
        Sweep.

    Example:
        >>> def experiment(lr, seed):
        ...     return {"loss": lr + seed, "diverged_at": 3 if lr > 1 else None}
        >>> result = sweep(experiment, grid(lr=[0.5, 2.0], seed=[0, 1]))
        >>> result, result.where(lr=0.5)["loss"].tolist()
        (Sweep(2 diverged, 2 done), [0.5, 1.5])

    """
    todo = dict(enumerate(map(dict, cells)))
    compute = _compute if folder is None else Memory(folder, verbose=0).cache(_compute, ignore=["experiment"])
    attempt = partial(_attempt, compute, experiment, _identity(experiment))
    finished: dict[int, CellResult] = {}
    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=len(todo), disable=not shown, leave=False, unit="cell") as bar:
        try:
            run = Parallel(n_jobs=workers, return_as="generator_unordered")
            for index, result in run(delayed(attempt)(i, cell) for i, cell in todo.items()):
                finished[index] = result
                bar.update()
        except Exception:  # a worker was killed, and joblib gave up all: which cell it was shows alone
            for i in todo.keys() - finished.keys():
                try:
                    ((_, finished[i]),) = Parallel(n_jobs=2)([delayed(attempt)(i, todo[i])])
                except Exception as error:
                    finished[i] = CellResult(todo[i], "lost", {}, f"{type(error).__name__}: {error}")
                bar.update()
    return Sweep([finished[i] for i in todo])


def _identity(experiment: Any) -> str:
    """A hash of what an experiment is: its source, and what a partial holds."""
    inner = experiment.func if isinstance(experiment, partial) else experiment
    held = (experiment.args, experiment.keywords) if isinstance(experiment, partial) else ()
    return str(content_hash((inspect.getsource(inner), held)))


def _compute(experiment: Callable[..., Mapping[str, Any]], identity: str, cell: Cell) -> dict[str, Any]:
    """One cell; `identity` is there for the memory."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng():
            torch.manual_seed(cell.get("seed", 0))
            return dict(experiment(**cell))
    finally:
        torch.set_num_threads(threads)


def _attempt(compute: Any, experiment: Any, identity: str, index: int, cell: Cell) -> tuple[int, CellResult]:
    """One cell, whatever comes of it; an error is not remembered, and is tried again by the next call."""
    try:
        results = compute(experiment, identity, cell)
    except Exception as error:
        return index, CellResult(cell, "raised", {}, f"{type(error).__name__}: {error}")
    status = "done" if results.get("diverged_at") is None else "diverged"
    return index, CellResult(cell, status, results)
