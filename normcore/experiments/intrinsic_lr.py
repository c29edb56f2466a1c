"""The runs of Li, Lyu & Arora (2020) at the size of the paper, stored as a data file that chapters 11 to 13 draw.

    python -m normcore.experiments intrinsic_lr --data FOLDER                  all arms, three seeds each
    python -m normcore.experiments intrinsic_lr --arms "lr/10" --seeds 0       some of them
    python -m normcore.experiments intrinsic_lr --size small --data PHOTOGRAPHS    a small net, for CPUs
    python -m normcore.experiments intrinsic_lr --size tiny                    the whole path in seconds

An arm is a list of phases: factors on learning rate and weight decay, and a length in units of
1/(lr * weight_decay) steps. Killed and started again, the same command goes on where it was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normcore.experiments.long_runs import DataSetting, LongRuns, command_line
from normcore.experiments.probes import Chord, LateSWA, MonitorReading, in_chunks
from normcore.lab.data.dataset import Dataset
from normcore.lab.nets.resnets import preresnet
from normcore.lab.training.history import History
from normcore.lab.training.loop import train
from normcore.lab.training.probes import accuracy_on, loss_on, trainable, weight_norm
from normcore.norm_dynamics.monitor import NormMonitor

Phase = tuple[float, float, float]
"""Factor on lr, factor on weight_decay, length in units of 1/(lr * weight_decay) steps."""

FIRST, SECOND, LONG = 12.0, 13.0, 60.0
"""Lengths: to an equilibrium; of what follows a change by ten, whose own unit is ten times longer; to its equilibrium."""

PASTS: dict[str, list[Phase]] = {
    "past 1": [(1, 1, 5)],
    "past 2": [(0.25, 4, 3), (1, 0.25, 2)],
    "past 3": [(0.1, 1, 2), (0.5, 1, 3)],
    "past 4": [(1, 0, 2), (1, 4, 3)],
    "past 5": [(0.5, 0.5, 4), (0.1, 10, 1)],
}
"""Five schedules before a common one. The paper's own table of schedules was not at hand: these are ours."""

PHASES: dict[str, list[Phase]] = {
    "base": [(1, 1, FIRST + SECOND)],
    "lr/4 wd*4": [(0.25, 4, FIRST)],
    "lr/2 wd*2": [(0.5, 2, FIRST)],
    "wd/4": [(1, 0.25, FIRST + SECOND)],
    "lr/10": [(1, 1, FIRST), (0.1, 1, SECOND)],
    "wd/10": [(1, 1, FIRST), (1, 0.1, SECOND)],
    "lr/10 wd*10": [(1, 1, FIRST), (0.1, 10, SECOND)],
    "large first short": [(1, 1, FIRST), (0.1, 1, SECOND), (0.01, 1, 2)],
    "small only short": [(0.1, 1, FIRST + SECOND), (0.01, 1, 2)],
    "large first": [(1, 1, FIRST), (0.1, 1, LONG), (0.01, 1, 2)],
    "small only": [(0.1, 1, FIRST + LONG), (0.01, 1, 2)],
    **{name: [*past, (1, 1, FIRST), (0.1, 0, 2)] for name, past in PASTS.items()},
    "full batch": [(1, 1, 20), (1, 0, 5)],
}
ARMS = tuple(PHASES)


@dataclass(frozen=True)
class Setting(DataSetting):
    """What all runs share; the defaults are the paper's net, data and rate."""

    depth: int = 32
    width: int = 16
    batch_size: int = 128
    lr: float = 0.8
    weight_decay: float = 2e-3
    crop: int = 4
    flip: bool = True
    readings: int = 4
    full_batch: int = 1000

    @property
    def unit(self) -> int:
        """1/(lr * weight_decay), in steps."""
        return round(1 / (self.lr * self.weight_decay))


SMALL = Setting("image-folder", 16, 20_000, 1000, 8, 8, 64, weight_decay=8e-3, crop=2, full_batch=250)
TINY = Setting("digits", None, None, None, 8, 4, 100, 0.8, 0.125, 0, False, readings=2, full_batch=100)


def rates_of(arm: str, setting: Setting) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The learning rate and the weight decay of each step of an arm, (T,) each.

    Args:
        arm: one of `ARMS`.
        setting: lr, weight_decay and with them the unit count.

    Raises:
        ValueError: the arm is unknown.

    Example:
        >>> lr, weight_decay = rates_of("lr/10", Setting())
        >>> len(lr), lr[[0, -1]].round(3).tolist(), weight_decay[-1].tolist()
        (15625, [0.8, 0.08], 0.002)

    """
    if arm not in ARMS:
        raise ValueError(f"arm must be one of {list(ARMS)}, got {arm!r}")
    phases = PHASES[arm]
    lengths = [round(length * setting.unit) for _, _, length in phases]
    lr, weight_decay = (np.repeat([phase[i] for phase in phases], lengths) for i in (0, 1))
    return lr * setting.lr, weight_decay * setting.weight_decay


def train_arm(
    arm: str, seed: int, setting: Setting, data: Dataset, *, folder: Path | None = None, **options: Any
) -> tuple[dict[str, Any], int | None]:
    """Train one arm from one seed, which draws weights, batches and augmentation.

    SGD without momentum; weight decay coupled, on all trained weights; batch statistics in training and testing.

    Args:
        arm: one of `ARMS`; "full batch" takes few training images whole, without augmentation.
        seed: of everything.
        setting: of all runs.
        data: on the device to train on.
        folder: for checkpoints; None makes none.
        **options: of `lab.train`: compile, autocast, channels_last, progress.

    Returns:
        (records, diverged_at). At every reading, the first before step 0: "step", "lr", "weight_decay", "norm",
        "rho", "angle", "grad_sq_norm" (means over about 1/(lr wd) steps), "test_accuracy", "test_loss",
        "swa_accuracy" (average over the last phase, or over
        the second half of an only one), "chord" (from the middle of the first phase); since the reading before: "train_loss" (mean),
        "worst_loss" (highest batch loss), both nan at the first.

    """
    lr, weight_decay = rates_of(arm, setting)
    every = max(1, setting.unit // setting.readings)
    whole = arm == "full batch"
    if whole:
        data = data.subset(train=setting.full_batch, seed=seed)
    size = {"in_channels": data.pixels_train.shape[1], "classes": data.classes, "seed": seed}
    net = preresnet(setting.depth, width=setting.width, **size).to(data.pixels_train.device)
    optimizer = torch.optim.SGD(trainable(net), lr=setting.lr, weight_decay=setting.weight_decay)
    monitor = NormMonitor(optimizer, horizon=setting.unit)

    def before_step(t: int) -> None:
        optimizer.param_groups[0].update(lr=float(lr[t]), weight_decay=float(weight_decay[t]))

    steps, first = len(lr), round(PHASES[arm][0][2] * setting.unit)
    averaging = steps // 2 if len(PHASES[arm]) == 1 else steps - round(PHASES[arm][-1][2] * setting.unit)
    if whole:
        batches: Any = [(data.x_train, data.y_train)] * steps
    else:
        draw, crop, flip = (steps, setting.batch_size, seed), setting.crop, setting.flip
        batches = data.batches(*draw, replacement=False, crop=crop, flip=flip)
    history = train(
        net,
        optimizer,
        batches,
        before_step=before_step,
        probes={
            "monitor": MonitorReading(monitor),
            "norm": weight_norm,
            "test_accuracy": in_chunks(accuracy_on, data.x_test, data.y_test),
            "test_loss": in_chunks(loss_on, data.x_test, data.y_test),
            "swa_accuracy": LateSWA(averaging // every, data.x_test, data.y_test),
            "chord": Chord(first // 2 // every),
        },
        every=every,
        checkpoint=folder,
        checkpoint_every=every,
        **options,
    )
    return _records(history, lr, weight_decay), history.diverged_at


def _records(history: History, lr: NDArray[np.float64], wd: NDArray[np.float64]) -> dict[str, Any]:
    """What is kept of a run."""
    pieces = [history.loss[a:b] for a, b in pairwise(history.step)]
    read = {name: history[name] for name in ("norm", "test_accuracy", "test_loss", "swa_accuracy", "chord")}
    monitor = dict(zip(MonitorReading.NAMES, history["monitor"].T, strict=True))
    at = np.minimum(history.step, len(lr) - 1)
    losses = {
        "train_loss": [math.nan, *(piece.mean() for piece in pieces)],
        "worst_loss": [math.nan, *(piece.max() for piece in pieces)],
    }
    return {"step": history.step, "lr": lr[at], "weight_decay": wd[at], **read, **monitor, **losses}


RUNS = LongRuns("intrinsic_lr", ARMS, {"paper": Setting(), "small": SMALL, "tiny": TINY}, train_arm)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return command_line(RUNS, __doc__ or "", arguments)
