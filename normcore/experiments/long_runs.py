"""Runs at the size of a paper: arms by seeds, each saved as it goes and stored in a data file when finished.

    python -m normcore.experiments NAME --data FOLDER                            all arms, three seeds each
    python -m normcore.experiments NAME --arms ARM --seeds 0                     some of them
    python -m normcore.experiments NAME --size small --data PHOTOGRAPHS          a small net, for CPUs
    python -m normcore.experiments NAME --size tiny                              the whole path in seconds

Killed and started again, the same command goes on where it was. Each finished run is in the file at once.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from normcore.experiments import stored
from normcore.lab.data.dataset import Dataset, load_dataset
from normcore.lab.nets.residual import preresnet
from normcore.lab.training.loop import Batches, LossFn, train
from normcore.lab.training.probes import History, Probe, accuracy_on, loss_on

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
    have, data = stored.load(out), None
    done = {(run["arm"], run["seed"]) for run in have.runs} if have else set()
    for seed in given.seeds:
        for arm in given.arms:
            if (arm, seed) in done:
                print(f"stored before: {arm}, seed {seed}", flush=True)
                continue
            data = data or load(setting, given.data, given.download, given.device)
            folder = work / f"{arm.replace(' ', '-').replace('/', 'by')}-{seed}"
            compiled = "reduce-overhead" if given.compile else False
            records, diverged_at = runs.train_arm(arm, seed, setting, data, folder=folder, compile=compiled)
            about = {"arm": arm, "seed": seed, "diverged_at": diverged_at, "device": given.device}
            stored.add_run(out, asdict(setting), records=records, **about)
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
    add("--arms", nargs="+", choices=runs.arms, default=runs.arms, metavar="ARM")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--compile", action="store_true", help="torch.compile with CUDA graphs")
    add("--out", type=Path, help="the data file (default: below book/data, tiny: below _build)")
    add("--work", type=Path, help="folder of checkpoints (default: below _build)")
    return parser


def load(setting: Setting, root: str, download: bool, device: str) -> Dataset:
    """The data set of a setting, on the device."""
    size = setting.image_size if setting.dataset == "image-folder" else None
    data = load_dataset(setting.dataset, root, download, device=device, image_size=size)
    return data.subset(setting.train, setting.test)
