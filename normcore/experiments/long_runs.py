"""The command line of runs at the size of a paper: arms by seeds, each saved as it goes and stored when finished."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from normcore.experiments import stored
from normcore.lab.data.dataset import Dataset, load_dataset

Records = Mapping[str, Any]
TrainArm = Callable[..., tuple[Records, int | None]]


@dataclass(frozen=True)
class DataSetting:
    """What the data of all runs are; the settings of an experiment inherit it.

    Attributes:
        dataset: a name of `lab.load_dataset`.
        image_size: of "image-folder".
        train: how many training images; None keeps all.
        test: how many test images, likewise.

    """

    dataset: str = "cifar10"
    image_size: int | None = None
    train: int | None = None
    test: int | None = None


@dataclass(frozen=True)
class LongRuns:
    """What one command can run.

    Attributes:
        name: of the data file, "exponential_lr" say.
        arms: what distinguishes the runs, seeds apart.
        settings: "paper", "small" and "tiny" -> what all runs share, a `DataSetting` of plain values.
        train_arm: called as (arm, seed, setting, data, folder=, compile=), gives (records, diverged_at).
        headline: the record whose last value is printed when a run is finished.

    """

    name: str
    arms: Sequence[str]
    settings: Mapping[str, DataSetting]
    train_arm: TrainArm
    headline: str = "test_accuracy"

    def file(self, size: str) -> Path:
        """Where the results of a size go: below book/data, those of "tiny" below _build."""
        if size == "tiny":
            return Path("_build", f"{self.name}_tiny", f"{self.name}.json")
        return Path("book", "data", f"{self.name}.json" if size == "paper" else f"{self.name}_{size}.json")


def command_line(runs: LongRuns, description: str, arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments (by default those of the process) ask for, but for what is stored already.

    Args:
        runs: what can be run.
        description: the text of `--help`.
        arguments: as in a shell.

    Returns:
        0, the exit status.

    Raises:
        SystemExit: an argument is unknown.
        ValueError: the data file holds runs of other settings.

    """
    given = _parser(runs, description).parse_args(arguments)
    work = given.work or Path("_build") / f"{runs.name}_{given.size}"
    in_work = given.size == "tiny" and given.work is not None
    out = given.out or (work / f"{runs.name}.json" if in_work else runs.file(given.size))
    setting = runs.settings[given.size]
    setting = replace(setting, dataset=given.dataset or setting.dataset)
    have = stored.load(out)
    done = {(run["arm"], run["seed"]) for run in have.runs} if have else set()
    asked = [(arm, seed) for seed in given.seeds for arm in given.arms]
    for arm, seed in asked:
        if (arm, seed) in done:
            print(f"stored before: {arm}, seed {seed}", flush=True)
    missing = [run for run in asked if run not in done]
    data = load(setting, given.data, given.download, given.device) if missing else None
    for arm, seed in missing:
        folder = work / f"{arm.replace(' ', '-').replace('/', 'by')}-{seed}"
        compiled = "reduce-overhead" if given.compile else False
        records, diverged_at = runs.train_arm(arm, seed, setting, data, folder=folder, compile=compiled)
        about = {"arm": arm, "seed": seed, "diverged_at": diverged_at, "device": given.device}
        stored.add_run(out, asdict(setting), records=records, **about)
        last = records[runs.headline][-1]
        print(f"{arm}, seed {seed}: {runs.headline.replace('_', ' ')} {last:.4f}", flush=True)
    return 0


def _parser(runs: LongRuns, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(runs.settings), default="paper", help="default: paper")
    parser.add_argument("--data", default="data", help="folder of the data set (default: data)")
    parser.add_argument(
        "--dataset", default="", help="another than the size's, by its name in lab.load_dataset"
    )
    parser.add_argument("--download", action="store_true", help="let torchvision fetch missing files")
    parser.add_argument("--arms", nargs="+", choices=runs.arms, default=runs.arms, metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile with CUDA graphs")
    parser.add_argument(
        "--out", type=Path, help="the data file (default: below book/data, tiny: below _build)"
    )
    parser.add_argument("--work", type=Path, help="folder of checkpoints (default: below _build)")
    return parser


def load(setting: DataSetting, root: str, download: bool, device: str) -> Dataset:
    """The data set of a setting, on the device."""
    size = setting.image_size if setting.dataset == "image-folder" else None
    data = load_dataset(setting.dataset, root, download, device=device, image_size=size)
    return data.subset(setting.train, setting.test)
