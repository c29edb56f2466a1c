"""Sweeps: one experiment at every cell of a grid, on one core or a cluster, stopped and resumed at will."""

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from normcore.lab.backends import make_plan, run, run_in_executor
from normcore.lab.fingerprint import fingerprint
from normcore.lab.plans import split
from normcore.lab.results import FAILED, STATUSES, Cell, CellResult, Store, cell_key


def grid(**lists: Iterable[Any]) -> list[dict[str, Any]]:
    """List all combinations, the last name running fastest.

    Example:
        >>> grid(lr=[0.1, 0.2], seed=range(2))
        [{'lr': 0.1, 'seed': 0}, {'lr': 0.1, 'seed': 1}, {'lr': 0.2, 'seed': 0}, {'lr': 0.2, 'seed': 1}]

    """
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


@dataclass(frozen=True, eq=False)
class Sweep:
    """The results of a sweep, in the order of its cells.

    `sweep[3]` is a `CellResult`, `sweep[2:5]` a `Sweep`, and `sweep["loss"]` an array whose first axis runs over
    the cells: results of that name (nan where a cell has none), or else settings.

    Attributes:
        cells: one `CellResult` for each cell.
        backend: how they were computed, or "disk".
        timings: seconds that "auto" expected of each backend it timed.

    """

    cells: list[CellResult]
    backend: str = "disk"
    timings: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many cells."""
        return len(self.cells)

    def __iter__(self) -> Iterator[CellResult]:
        """The results in order."""
        return iter(self.cells)

    def __repr__(self) -> str:
        """A line."""
        found = Counter(result.status for result in self.cells)
        counts = ", ".join(f"{found[status]} {status}" for status in STATUSES if found[status])
        return f"Sweep({counts or 'no cells'}; {self.backend})"

    def where(self, **settings: Any) -> "Sweep":
        """The cells that have all these settings.

        Raises:
            KeyError: no cell has a setting of that name.

        """
        for name in settings:
            if not any(name in result.cell for result in self.cells):
                raise KeyError(f"no cell has a setting {name!r}")
        chosen = [r for r in self.cells if all(r.cell.get(k, _NONE) == v for k, v in settings.items())]
        return Sweep(chosen, self.backend, self.timings)

    @overload
    def __getitem__(self, item: int) -> CellResult: ...
    @overload
    def __getitem__(self, item: slice) -> "Sweep": ...
    @overload
    def __getitem__(self, item: str) -> NDArray[Any]: ...
    def __getitem__(self, item: int | slice | str) -> "CellResult | Sweep | NDArray[Any]":
        """A cell, some cells, or one result or setting of all cells.

        Raises:
            KeyError: no cell has a result or setting of that name.
            ValueError: the results differ in shape.

        """
        if isinstance(item, slice):
            return Sweep(self.cells[item], self.backend, self.timings)
        return self._column(item) if isinstance(item, str) else self.cells[item]

    def _column(self, name: str) -> NDArray[Any]:
        """One result of all cells, or one setting."""
        arrays = [result.results.get(name) for result in self.cells]
        known = {array.shape for array in arrays if array is not None}
        if not known and all(name in result.cell for result in self.cells):
            return np.array([result.cell[name] for result in self.cells])
        if not known:
            names = sorted({key for result in self.cells for key in (*result.results, *result.cell)})
            raise KeyError(f"no cell has a result named {name!r}; there are {names}")
        if len(known) > 1:
            raise ValueError(f"{name!r} must have one shape to be stacked, got {sorted(known)}")
        missing = np.full(known.pop(), np.nan)
        return np.stack([missing if array is None else array for array in arrays])


_NONE = object()


def sweep(
    experiment: Callable[..., Mapping[str, Any]],
    cells: Iterable[Cell],
    *,
    folder: str | Path | None = None,
    backend: str = "auto",
    executor: Any = None,
    workers: int | None = None,
    retry_failed: bool = False,
    progress: bool | None = None,
) -> Sweep:
    """Compute an experiment at every cell, in whatever way is fastest, and keep what is finished.

    A cell that diverges, raises an error or kills its process costs only itself. With a folder every cell has a
    file there as soon as it is computed, and the same call, made again after any interruption or with more
    cells, computes what is missing. Results do not depend on the order of the cells, the number of workers or the
    place: exactly for "loop", "processes" and executors, up to rounding for "vmap". Every cell is
    computed with one torch thread and with the global generators seeded by the cell.

    Args:
        experiment: called as `experiment(**cell)`, returns a dict of numbers and arrays; a result `diverged_at`
            that is neither None nor nan means that the cell diverged. Picklable, unless it stays in this process.
            With a method `together(cells)`, a list of such dicts, it can be run with "vmap"; with `steps` and
            `shortened(steps)` it can be timed. `Training` has all that.
        cells: dicts of numbers, strings or lists of them, from `grid` or by hand.
        folder: where results are kept. Their names hold the experiment and the cell: another experiment, other
            data or changed code of the experiment itself are computed anew.
        backend: "loop"; "vmap": many cells at once; "processes": one cell at a time in each worker; "auto" takes
            the fastest (see `normcore.lab.plans.fastest`).
        executor: has `submit`, as `concurrent.futures.Executor`, Dask's `client.get_executor()` or submitit's
            executors; takes the place of worker processes.
        workers: processes; all cores by default. With "vmap" the cells are shared out among them; by default
            they stay here.
        retry_failed: whether cells that raised or were lost are computed again.
        progress: whether to show a bar; by default on a terminal.

    Returns:
        Sweep.

    Raises:
        ValueError: backend or workers breaks its condition.
        TypeError: a cell holds something else, or the experiment cannot be pickled and must be.
        RuntimeError: the executor broke, or no worker process starts.

    Warns:
        UserWarning: a file is truncated or foreign, and its cell is computed anew.

    Example:
        >>> def experiment(lr, seed):
        ...     return {"loss": lr + seed, "diverged_at": 3 if lr > 1 else None}
        >>> result = sweep(experiment, grid(lr=[0.5, 2.0], seed=[0, 1]), backend="loop")
        >>> result
        Sweep(2 done, 2 diverged; loop)
        >>> result.where(lr=0.5)["loss"].tolist(), result["lr"].tolist()
        ([0.5, 1.5], [0.5, 0.5, 2.0, 2.0])

    """
    cells = [dict(cell) for cell in cells]
    store = None if folder is None else Store(folder, fingerprint(experiment))
    by_key, finished = {cell_key(cell): cell for cell in cells}, dict[str, CellResult]()
    for key, cell in by_key.items():
        found = None if store is None else store.load(cell)
        if found is not None and not (retry_failed and found.status in FAILED):
            finished[key] = found
    todo = [cell for key, cell in by_key.items() if key not in finished]
    name, seconds, parts = _start(experiment, todo, backend, executor, workers)
    shown = sys.stderr.isatty() if progress is None else progress
    bar = tqdm(total=len(by_key), initial=len(finished), disable=not shown, leave=False, unit="cell")
    with bar, closing(parts):
        for results in parts:
            for result in results:
                if store is not None:
                    store.save(result)
                finished[cell_key(result.cell)] = result
                bar.update()
    return Sweep([finished[cell_key(cell)] for cell in cells], name, seconds)


Parts = Generator[list[CellResult], None, None]


def _start(
    experiment: Callable[..., Any], todo: list[Cell], backend: str, executor: Any, workers: int | None
) -> tuple[str, Mapping[str, float], Parts]:
    """The name of the backend, what "auto" expected of each, and the results as they come."""
    if executor is None:
        plan = make_plan(experiment, todo, backend, workers)
        return str(plan) if todo else "disk", plan.seconds, run(experiment, todo, plan)
    asked = "loop" if backend in ("auto", "processes") else backend
    plan = replace(make_plan(experiment, todo, asked, workers), workers=workers or 1)
    name = type(executor).__name__
    return name, {}, run_in_executor(experiment, split(todo, plan), plan.together, executor)
