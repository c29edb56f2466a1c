"""What a sweep keeps of each cell, in memory and on disk: one file a cell, whole or not at all."""

import hashlib
import io
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FORMAT = "normcore cell 1"
STATUSES = ("done", "diverged", "raised", "lost")
FAILED = ("raised", "lost")

Cell = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class CellResult:
    """What became of one cell.

    Attributes:
        cell: its settings.
        status: "done"; "diverged", where the results hold a step `diverged_at`; "raised" an error; "lost", where
            the process that computed it died.
        results: name -> array; empty for "raised" and "lost".
        error: the traceback, or what is known of the death; None otherwise.
        seconds: it took. Cells that were computed together share their time equally.

    """

    cell: Cell
    status: str
    results: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    error: str | None = None
    seconds: float = math.nan

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A result.

        Raises:
            KeyError: there is none of that name.

        """
        if name not in self.results:
            known = f"it has {sorted(self.results)}" if self.results else f"the cell {self.status}"
            raise KeyError(f"no result named {name!r}; {known}")
        return self.results[name]


def as_arrays(outcome: Any) -> dict[str, NDArray[Any]]:
    """Turn what an experiment returned into arrays; None becomes nan.

    Raises:
        TypeError: it is not a dict of numbers, arrays and tensors.

    """
    if not isinstance(outcome, Mapping):
        raise TypeError(f"experiment must return a dict, got {type(outcome).__name__}")
    arrays = dict[str, NDArray[Any]]()
    for name, value in outcome.items():
        if isinstance(value, Tensor):
            value = (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()
        array = np.array(math.nan if value is None else value)
        if not isinstance(name, str) or array.dtype.kind not in "biufc":
            kind = f"{type(value).__name__} for {name!r}"
            raise TypeError(f"experiment must return names with numbers or arrays of them, got {kind}")
        arrays[name] = array
    return arrays


def diverged(results: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the results name a step at which the cell diverged."""
    step = results.get("diverged_at")
    return step is not None and not bool(np.isnan(step).all())


def plain(value: Any) -> Any:
    """A setting as JSON knows it: numbers, strings, lists.

    Raises:
        TypeError: it is something else.

    """
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cell values must be numbers, strings or lists of them, got {value!r}")


def cell_key(cell: Cell, experiment: str = "") -> str:
    """Hash a cell, of an experiment with the given fingerprint: 32 hexadecimal digits.

    Example:
        >>> cell_key({"lr": 0.1, "seed": 0}) == cell_key({"seed": np.int64(0), "lr": 0.1})
        True

    """
    text = json.dumps([experiment, {name: plain(cell[name]) for name in sorted(cell)}])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """A folder of finished cells.

    A file is an npz archive without pickles: the arrays, and a record in JSON that names the cell. zip checks
    every byte. Files of other experiments may lie beside them.

    Args:
        folder: made where it is missing.
        experiment: its fingerprint.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = Store(folder, "an experiment")
        ...     store.save(CellResult({"lr": 0.1}, "done", {"loss": np.array([2.0, 1.0])}))
        ...     store.load({"lr": 0.1})["loss"].tolist(), store.load({"lr": 0.2})
        ([2.0, 1.0], None)

    """

    def __init__(self, folder: str | Path, experiment: str) -> None:
        """Make the folder."""
        self.folder, self.experiment = Path(folder), experiment
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, cell: Cell) -> Path:
        """Where the cell's file is, or would be."""
        return self.folder / f"{cell_key(cell, self.experiment)}.npz"

    def save(self, result: CellResult) -> None:
        """Write a cell to a temporary file, force it to the disk, and only then give it its name."""
        target = self.path(result.cell)
        record = {
            "format": FORMAT,
            "key": target.stem,
            "cell": {name: plain(value) for name, value in result.cell.items()},
            "status": result.status,
            "error": result.error,
            "seconds": result.seconds,
        }
        body = io.BytesIO()
        text = np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)
        arrays: dict[str, Any] = {f"results/{name}": array for name, array in result.results.items()}
        np.savez(body, record=text, **arrays)
        partial = target.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            file.write(body.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)

    def load(self, cell: Cell) -> CellResult | None:
        """Read a cell, None where it is missing or, with a warning, where its file cannot be trusted."""
        path = self.path(cell)
        if not path.exists():
            return None
        try:
            return _read(path, cell)
        except OSError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"{path.name} is truncated or foreign and is computed anew ({reason})", stacklevel=3
            )
            return None


def _read(path: Path, cell: Cell) -> CellResult:
    """Read a file and check that it is what its name says."""
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    record = json.loads(arrays.pop("record").tobytes())
    expected = {"format": FORMAT, "key": path.stem}
    found = {name: record[name] for name in expected}
    if found != expected or record["status"] not in STATUSES:
        raise ValueError(f"its record is {found}, {record['status']!r} instead of {expected}")
    results = {name.removeprefix("results/"): array for name, array in arrays.items()}
    return CellResult(cell, record["status"], results, record["error"], record["seconds"])
