"""The runs of Li & Arora (2020) at the size of the paper, which chapter 8 draws."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from normcore.checks import checked_choice
from normcore.equivalence.schedule import EquivalentSchedule
from normcore.equivalence.theorems import texp, texp_plus_plus
from normcore.experiments import stored
from normcore.lab.data.dataset import Dataset
from normcore.lab.nets.residual import resnet9
from normcore.lab.training.loop import at_each_step
from normcore.lab.training.probes import Angle, Probe, trainable, weight_norm
from normcore.schedules import Cosine, StepDecay

ARMS = (
    "step decay",
    "texp",
    "texp--",
    "texp++",
    "cosine",
    "cosine twin",
    "growth kept",
    "neither",
    "rise and fall",
    "rise and fall twin",
)


@dataclass(frozen=True)
class Setting(stored.Setting):
    """What all runs share; the defaults are the paper's."""

    epochs: int = 300
    milestones: tuple[int, ...] = (80, 120)
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: int = 4
    flip: bool = True


@dataclass(frozen=True)
class Photographs(Setting):
    """A ResNet-9-like net, for GPUs and for processors with bfloat16 units."""

    epochs: int = 24
    milestones: tuple[int, ...] = (14, 20)
    lr: float = 0.15
    batch_size: int = 256
    depth: int = 9
    width: int = 32
    head_scale: float = 1.5
    autocast: bool = True  # to bfloat16


QUARTER: dict[str, Any] = {"dataset": "image-folder", "image_size": 16, "width": 16, "crop": 2}
SMALL = Photographs(**QUARTER, epochs=10, milestones=(5, 8), lr=0.1, weight_decay=2e-3, autocast=False)
TINY = Setting("digits", depth=8, width=4, epochs=2, milestones=(1,), batch_size=100, crop=0, flip=False)


def rates_of(arm: str, setting: Setting, epoch: int) -> NDArray[np.float64] | EquivalentSchedule:
    """The rates of an arm with weight decay, (T,), or the schedule of one without; an epoch has `epoch` steps."""
    steps, wd, momentum = setting.epochs * epoch, setting.weight_decay, setting.momentum
    staircase = StepDecay(setting.lr, tuple(m * epoch for m in setting.milestones))
    if arm in ("texp", "texp--"):
        return texp(staircase.phases(steps), wd, momentum, instant_decay=arm == "texp")
    checked_choice("arm", arm, list(ARMS))
    shape = Cosine(setting.lr, steps) if "cosine" in arm else staircase
    rates = shape.values(steps)
    if arm == "growth kept":  # that of the first phase for good, and only the rate is divided
        grown = texp([(setting.lr, steps)], wd, momentum)
        return replace(grown, log_lr=grown.log_lr + np.log(rates / setting.lr))
    if "rise" in arm:  # over a fifth of the run, and down to zero
        rates = setting.lr * np.interp(np.arange(steps) + 0.5, [0, steps / 5, steps], [0, 1, 0])
    return texp_plus_plus(rates, wd, momentum) if arm.endswith(("++", "twin")) else rates


class FirstStepAngle(Angle):
    """The angle of the first step of each epoch: told of every step, read as a probe once an epoch.

    A reading is that of the epoch that ends, and nan at the start.
    """

    kept = (*Angle.kept, ("last", float))

    def __init__(self, epoch: int) -> None:
        """Start without a reading; `epoch` is its length in steps, >= 2."""
        super().__init__()
        self.epoch, self.last = epoch, math.nan

    def before_step(self, t: int, model: nn.Module) -> None:
        """Take note of the weights before the first and the second step of an epoch."""
        if t % self.epoch == 0:
            self.before = None
        if t % self.epoch <= 1:
            self.last = super().__call__(model)

    def __call__(self, model: nn.Module) -> float:
        return self.last


def train_arm(
    arm: str, seed: int, setting: Setting, data: Dataset, *, folder: Path | None = None, **options: Any
) -> tuple[dict[str, Any], int | None]:
    """Train one arm from one seed; see `LongRuns`.

    By epoch: the mean "train_loss", the angle of the first step "step_angle", the angle between beginning and end
    "epoch_angle", "log10_lr" at the beginning; at the beginning and after each epoch: "test_accuracy", "test_loss",
    "norm". Other options are those of `lab.train`.
    """
    epoch = len(data.y_train) // setting.batch_size
    first, images = FirstStepAngle(epoch), data.pixels_train
    if isinstance(setting, Photographs):
        shape = setting.width, setting.head_scale, images.shape[1], data.classes
        net = resnet9(*shape, seed).to(images.device)
        options = {"autocast": torch.bfloat16 if setting.autocast else None, "channels_last": True, **options}
    else:
        net = stored.residual_net(setting, data, seed)
    rates: Any = rates_of(arm, setting, epoch)
    free = isinstance(rates, EquivalentSchedule)
    decay = 0.0 if free or arm == "neither" else setting.weight_decay
    optimizer = torch.optim.SGD(trainable(net), lr=setting.lr, momentum=setting.momentum, weight_decay=decay)
    set_rate = None if free else at_each_step(optimizer, lr=rates)

    def before_step(t: int) -> None:
        first.before_step(t, net)
        if set_rate is not None:
            set_rate(t)

    draw, crop, flip = (setting.epochs * epoch, setting.batch_size, seed), setting.crop, setting.flip
    batches = data.batches(*draw, replacement=False, crop=crop, flip=flip)
    probes: dict[str, Probe] = {"norm": weight_norm, "epoch_angle": Angle(), "step_angle": first}
    options |= {"schedule": rates if free else None, "before_step": before_step, "folder": folder}
    history = stored.fit(net, optimizer, batches, data, every=epoch, probes=probes, **options)
    log_rates = rates.log_lr if free else np.log(rates)
    records = {
        "train_loss": history.loss.reshape(setting.epochs, epoch).mean(axis=1),
        **{name: history[name] for name in ("test_accuracy", "test_loss", "norm")},
        # the first reading has no epoch behind it
        **{name: history[name][1:] for name in ("epoch_angle", "step_angle")},
        "log10_lr": log_rates[::epoch] / math.log(10),
    }
    return records, history.diverged_at


SIZES = {"paper": Setting(), "photographs": Photographs(), "small": SMALL, "tiny": TINY}
RUNS = stored.LongRuns("exponential_lr", SIZES, ARMS, train_arm)
