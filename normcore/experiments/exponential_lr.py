"""The runs of Li & Arora (2020) at the size of the paper, stored as a data file that chapter 8 draws.

    python -m normcore.experiments exponential_lr --data FOLDER            all arms, three seeds each
    python -m normcore.experiments exponential_lr --arms texp --seeds 0    some of them
    python -m normcore.experiments exponential_lr --size small --data PHOTOGRAPHS    a small net, for CPUs
    python -m normcore.experiments exponential_lr --size tiny              the whole path in seconds

Killed and started again, the same command goes on where it was. Each finished run is in the file at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normcore.equivalence.schedule import EquivalentSchedule
from normcore.equivalence.theorems import texp, texp_plus_plus
from normcore.experiments.long_runs import DataSetting, LongRuns, command_line
from normcore.experiments.probes import FirstStepAngle, in_chunks
from normcore.lab.data.dataset import Dataset
from normcore.lab.nets.resnets import preresnet
from normcore.lab.training.history import History
from normcore.lab.training.loop import train
from normcore.lab.training.probes import Angle, accuracy_on, loss_on, trainable, weight_norm
from normcore.schedules import Cosine, StepDecay

ARMS = ("step decay", "texp", "texp--", "texp++", "cosine", "cosine twin")


@dataclass(frozen=True)
class Setting(DataSetting):
    """What all runs share; the defaults are the paper's."""

    depth: int = 32
    width: int = 16
    epochs: int = 300
    milestones: tuple[int, ...] = (80, 120)
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: int = 4
    flip: bool = True


SMALL = Setting("image-folder", 16, 20_000, None, 8, 8, 24, (8, 16), weight_decay=2e-3, crop=2)
TINY = Setting("digits", depth=8, width=4, epochs=2, milestones=(1,), batch_size=100, crop=0, flip=False)


def rates_of(arm: str, setting: Setting, epoch: int) -> NDArray[np.float64] | EquivalentSchedule:
    """The rates of an arm with weight decay, (T,), or the schedule of one without.

    Args:
        arm: one of `ARMS`.
        setting: epochs, milestones, lr, momentum and weight_decay count.
        epoch: steps in an epoch.

    Raises:
        ValueError: the arm is unknown.

    Example:
        >>> rates_of("texp", Setting(), 391)  # the rate ends above 10^11
        EquivalentSchedule(steps=117300, log10_lr=-0.9998..11.64, corrections=3)

    """
    steps, wd, momentum = setting.epochs * epoch, setting.weight_decay, setting.momentum
    staircase = StepDecay(setting.lr, tuple(m * epoch for m in setting.milestones))
    if arm in ("texp", "texp--"):
        return texp(staircase.phases(steps), wd, momentum, instant_decay=arm == "texp")
    if arm not in ARMS:
        raise ValueError(f"arm must be one of {list(ARMS)}, got {arm!r}")
    shape = Cosine(setting.lr, steps) if "cosine" in arm else staircase
    rates = shape.values(steps)
    return rates if arm in ("step decay", "cosine") else texp_plus_plus(rates, wd, momentum)


def train_arm(
    arm: str, seed: int, setting: Setting, data: Dataset, *, folder: Path | None = None, **options: Any
) -> tuple[dict[str, Any], int | None]:
    """Train one arm from one seed, which draws weights, batches and augmentation.

    Args:
        arm: one of `ARMS`.
        seed: of everything.
        setting: of all runs.
        data: on the device to train on.
        folder: for checkpoints; None makes none.
        **options: of `lab.train`: compile, autocast, channels_last, progress.

    Returns:
        (records, diverged_at). By epoch: the mean "train_loss", the angle of the first step "step_angle", the
        angle between beginning and end "epoch_angle", "log10_lr" at the beginning; at the beginning and after
        each epoch: "test_accuracy", "test_loss", "norm".

    """
    epoch = len(data.y_train) // setting.batch_size
    size = {"in_channels": data.pixels_train.shape[1], "classes": data.classes, "seed": seed}
    net = preresnet(setting.depth, width=setting.width, **size).to(data.pixels_train.device)
    rates, first = rates_of(arm, setting, epoch), FirstStepAngle(epoch)
    schedule = rates if isinstance(rates, EquivalentSchedule) else None
    decay = 0.0 if schedule is not None else setting.weight_decay
    optimizer = torch.optim.SGD(trainable(net), lr=setting.lr, momentum=setting.momentum, weight_decay=decay)

    def before_step(t: int) -> None:
        first.before_step(t, net)
        if not isinstance(rates, EquivalentSchedule):
            optimizer.param_groups[0]["lr"] = float(rates[t])

    draw, crop, flip = (setting.epochs * epoch, setting.batch_size, seed), setting.crop, setting.flip
    history = train(
        net,
        optimizer,
        data.batches(*draw, replacement=False, crop=crop, flip=flip),
        schedule=schedule,
        before_step=before_step,
        probes={
            "test_accuracy": in_chunks(accuracy_on, data.x_test, data.y_test),
            "test_loss": in_chunks(loss_on, data.x_test, data.y_test),
            "norm": weight_norm,
            "epoch_angle": Angle(),
            "step_angle": first,
        },
        every=epoch,
        checkpoint=folder,
        checkpoint_every=epoch,
        **options,
    )
    log_rates = np.log(rates) if not isinstance(rates, EquivalentSchedule) else rates.log_lr
    return {**_records(history, epoch), "log10_lr": log_rates[::epoch] / math.log(10)}, history.diverged_at


def _records(history: History, epoch: int) -> dict[str, NDArray[np.float64]]:
    """What is kept of a run; angles belong to the epoch before their reading."""
    whole = len(history.loss) // epoch
    means = history.loss[: whole * epoch].reshape(whole, epoch).mean(axis=1)
    kept = {name: history[name] for name in ("test_accuracy", "test_loss", "norm")}
    angles = {name: history[name][1:] for name in ("epoch_angle", "step_angle")}
    return {"train_loss": means, **kept, **angles}


RUNS = LongRuns("exponential_lr", ARMS, {"paper": Setting(), "small": SMALL, "tiny": TINY}, train_arm)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return command_line(RUNS, __doc__ or "", arguments)
