"""Runs at the size of a paper: arms by seeds, each saved as it goes and stored in a data file when finished.

    python -m normcore.experiments NAME --data FOLDER                            all arms, three seeds each
    python -m normcore.experiments NAME --arms ARM --seeds 0                     some of them
    python -m normcore.experiments NAME --size small --data PHOTOGRAPHS          a small net, for CPUs
    python -m normcore.experiments NAME --size tiny                              the whole path in seconds

Killed and started again, the same command goes on where it was. Each finished run is in the file at once, with what is
needed to judge it and to make it again.
"""

import argparse
import datetime
import hashlib
import json
import math
import os
import platform
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from normcore.checks import require_type
from normcore.files import atomic_write
from normcore.lab.data.dataset import Dataset, load_dataset
from normcore.lab.nets.residual import preresnet
from normcore.lab.training.loop import Batches, LossFn, train
from normcore.lab.training.probes import History, Probe, accuracy_on, loss_on

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PACKAGE = Path(__file__).parent.parent
"""The folder of the package whose sources are fingerprinted."""

DIGITS = 7
"""Significant digits of a stored number."""

RUN_KEYS = {"arm", "seed", "diverged_at", "provenance", "records"}


@dataclass(frozen=True, eq=False)
class Stored:
    """The runs of one data file."""

    settings: Mapping[str, Any]  # common to all runs
    runs: Sequence[Mapping[str, Any]]  # with the keys RUN_KEYS; "records" is name -> numbers

    @property
    def arms(self) -> list[str]:
        """The arms, in the order of the file."""
        return list(dict.fromkeys(run["arm"] for run in self.runs))

    def seeds(self, arm: str) -> list[int]:
        """The seeds of an arm, in the order of the rows of `records`."""
        return [run["seed"] for run in self._of(arm)]

    def records(self, arm: str, name: str) -> NDArray[np.float64]:
        """One record of an arm as (seeds, readings); nan where a run diverged or read nothing. KeyError: there is none."""
        rows = [np.array(run["records"][name], dtype=np.float64) for run in self._of(arm)]
        table = np.full((len(rows), max(map(len, rows))), np.nan)
        for row, values in zip(table, rows, strict=True):
            row[: len(values)] = values
        return table

    def final(self, arm: str, name: str) -> tuple[float, float, int]:
        """Mean over seeds of the last reading, its standard error (nan for one seed) and the number of seeds."""
        last = self.records(arm, name)[:, -1]
        se = float(last.std(ddof=1)) / math.sqrt(len(last)) if len(last) > 1 else math.nan
        return float(last.mean()), se, len(last)

    def provenance(self, name: str) -> str:
        """The values that an entry of the runs' provenance takes, each once."""
        return ", ".join(dict.fromkeys(str(run["provenance"][name]) for run in self.runs))

    def _of(self, arm: str) -> list[Mapping[str, Any]]:
        found = [run for run in self.runs if run["arm"] == arm]
        if not found:
            raise KeyError(f"no arm named {arm!r}; the file has {self.arms}")
        return found

    def __repr__(self) -> str:
        """Lines of text: settings, arms, then where the runs come from."""
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        arms = ", ".join(f"{arm} x{len(self.seeds(arm))}" for arm in self.arms)
        names = self.runs[0]["provenance"] if self.runs else {}
        wrapped = [textwrap.fill(line, 90, subsequent_indent="  ") for line in (settings, arms)]
        return "\n".join([*wrapped, *(f"{name}: {self.provenance(name)}" for name in names)])


def provenance(device: str | torch.device = "cpu") -> dict[str, str]:
    """Say what made a run: versions, device, the sources of the package, and the day (UTC)."""
    place = torch.device(device)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine() or "cpu"
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": f"{place.type}: {name}",
        "source": source_hash(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


@cache
def source_hash(package: Path = PACKAGE) -> str:
    """Fingerprint the sources below a folder: names and contents of all its .py files, 16 hexadecimal digits.

    Read once in a process, so that it is what the process began with.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def load(path: str | Path) -> Stored | None:
    """Read a data file; None where there is none, for then nobody has run this yet.

    A file that `add_run` has not written, or not like this, is a ValueError.
    """
    require_type("path", path, str | Path, "a path")
    path = Path(path)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Stored(content.pop("settings"), content.pop("runs"))
        if any(run.keys() != RUN_KEYS for run in found.runs):
            raise ValueError("a run has not the entries of a run")
        # the oldest files have no checksum
        if content not in ({}, {"sha256": _checksum(found.settings, found.runs)}):
            raise ValueError("the checksum is that of something else")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"path must be a file of stored runs, got {path.name}, which is damaged or something else: {error}"
        ) from error
    return found


def add_run(
    path: str | Path,
    settings: Mapping[str, Any],
    *,
    arm: str,
    seed: int,
    records: Mapping[str, Any],
    diverged_at: int | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Put a run into a data file, in place of the one with the same arm and seed; the file is replaced at once.

    Several processes may add to one file: they wait for each other. The settings, plain values, are those of all runs
    of the file, else a ValueError. Records are name -> numbers, kept to 7 digits, what is not finite as null.
    `diverged_at` is the step at which the loss stopped being finite, the device the one on which the run ran.
    """
    path, settings = Path(path), json.loads(json.dumps(dict(settings)))
    run = {
        "arm": arm,
        "seed": seed,
        "diverged_at": diverged_at,
        "provenance": provenance(device),
        "records": {name: [_number(v) for v in np.ravel(values)] for name, values in records.items()},
    }
    with _alone_in(path.parent):
        for part in path.parent.glob(f".{path.name}.*.part"):
            part.unlink()  # of a process that was killed as it wrote: nobody else is here
        before = load(path)
        if before is not None and before.settings != settings:
            names = {*before.settings, *settings}
            differ = sorted(n for n in names if before.settings.get(n, n) != settings.get(n, n))
            raise ValueError(f"settings must be those of {path.name}, got others for {differ}")
        runs = [r for r in (before.runs if before else []) if (r["arm"], r["seed"]) != (arm, seed)] + [run]
        lines = ",\n".join(json.dumps(r, allow_nan=False) for r in runs)
        head = f'"settings": {json.dumps(settings)},\n"sha256": "{_checksum(settings, runs)}"'
        atomic_write(path, f'{{{head},\n"runs": [\n{lines}\n]}}\n')


def _checksum(settings: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    """The SHA-256 of the values; how they are laid out in the file does not count."""
    return hashlib.sha256(json.dumps([settings, runs], sort_keys=True).encode()).hexdigest()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Within this context no other process is in it for the same folder; the lock dies with its process.

    Locked is the folder itself, so that no file is left behind. Windows has no such lock: one command at a time there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _number(value: Any) -> float | None:
    """A float of few digits; None for what JSON cannot say."""
    number = float(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


CHUNK = 1000
"""Test images whose statistics a norm sees at once, so that memory stays small."""


@dataclass(frozen=True)
class Setting:
    """What all runs of an experiment share: its data, net and batches; experiments add their own."""

    dataset: str = "cifar10"  # a name of lab.load_dataset
    image_size: int | None = None  # of "image-folder"
    train: int | None = None  # how many images; None keeps all
    test: int | None = None
    depth: int = 32  # of the ResNet
    width: int = 16  # of its first stage
    batch_size: int = 128


@dataclass(frozen=True)
class LongRuns:
    """What one command can run.

    `train_arm` is called as (arm, seed, setting, data, folder=, compile=) and gives (name -> numbers, diverged_at). The
    seed draws weights, batches and augmentation; the folder is for checkpoints.
    """

    name: str  # of the data file
    settings: Mapping[str, Any]  # "paper", "small" and "tiny" -> what all runs share
    arms: Sequence[str]  # what distinguishes the runs, seeds apart
    train_arm: Callable[..., tuple[Mapping[str, Any], int | None]]
    own_arms: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of a size that has others

    def file(self, size: str) -> Path:
        """Where the results of "paper" and "small" go: the chapters read them there."""
        return Path("book", "data", f"{self.name}.json" if size == "paper" else f"{self.name}_{size}.json")


def residual_net(setting: Setting, data: Dataset, seed: int) -> nn.Module:
    """The pre-activation ResNet of a setting for these data, on their device."""
    size = {"in_channels": data.pixels_train.shape[1], "classes": data.classes, "seed": seed}
    return preresnet(setting.depth, width=setting.width, **size).to(data.pixels_train.device)


def fit(
    net: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    data: Dataset,
    *,
    every: int,
    probes: Mapping[str, Probe],
    folder: Path | None,
    loss_fn: LossFn = cross_entropy,
    **options: Any,
) -> History:
    """Train with "test_accuracy", "test_loss" and the probes read, and the run saved, every so many steps."""
    accuracy = accuracy_on(data.x_test, data.y_test, chunk=CHUNK)
    loss = loss_on(data.x_test, data.y_test, loss_fn, chunk=CHUNK)
    options |= {"checkpoint": folder, "checkpoint_every": every, "every": every, "loss_fn": loss_fn}
    always: dict[str, Probe] = {"test_accuracy": accuracy, "test_loss": loss}
    return train(net, optimizer, batches, probes={**always, **probes}, **options)


def command_line(runs: LongRuns, description: str, arguments: Sequence[str]) -> int:
    """Run what the arguments of a shell ask for, but for what is stored already; gives 0, the exit status.

    An unknown argument is a SystemExit, a data file with runs of other settings a ValueError.
    """
    given = _parser(runs, description).parse_args(arguments)
    work = given.work or Path("_build") / f"{runs.name}_{given.size}"
    out = given.out or (work / f"{runs.name}.json" if given.size == "tiny" else runs.file(given.size))
    setting = runs.settings[given.size]
    setting = replace(setting, dataset=given.dataset or setting.dataset)
    have, data = load(out), None
    done = {(run["arm"], run["seed"]) for run in have.runs} if have else set()
    for seed in given.seeds:
        for arm in given.arms or runs.own_arms.get(given.size, runs.arms):
            if (arm, seed) in done:
                print(f"stored before: {arm}, seed {seed}", flush=True)
                continue
            data = data or dataset_of(setting, given.data, given.download, given.device)
            folder = work / f"{arm.replace(' ', '-').replace('/', 'by')}-{seed}"
            compiled = "reduce-overhead" if given.compile else False
            records, diverged_at = runs.train_arm(arm, seed, setting, data, folder=folder, compile=compiled)
            about = {"arm": arm, "seed": seed, "diverged_at": diverged_at, "device": given.device}
            add_run(out, asdict(setting), records=records, **about)
            print(f"{arm}, seed {seed}: test accuracy {records['test_accuracy'][-1]:.4f}", flush=True)
    return 0


def _parser(runs: LongRuns, description: str) -> argparse.ArgumentParser:
    text = f"{description}\n{(__doc__ or '').replace('NAME', runs.name)}"
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=list(runs.settings), default="paper", help="default: paper")
    add("--data", default="data", help="folder of the data set (default: data)")
    add("--dataset", default="", help="another than the size's, by its name in lab.load_dataset")
    add("--download", action="store_true", help="let torchvision fetch missing files")
    choices = [*runs.arms, *(arm for arms in runs.own_arms.values() for arm in arms)]
    add("--arms", nargs="+", choices=choices, metavar="ARM")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--compile", action="store_true", help="torch.compile with CUDA graphs")
    add("--out", type=Path, help="the data file (default: below book/data, tiny: below _build)")
    add("--work", type=Path, help="folder of checkpoints (default: below _build)")
    return parser


def dataset_of(setting: Setting, root: str, download: bool, device: str) -> Dataset:
    """The data set of a setting, on the device."""
    size = setting.image_size if setting.dataset == "image-folder" else None
    data = load_dataset(setting.dataset, root, download, device=device, image_size=size)
    return data.subset(setting.train, setting.test)
