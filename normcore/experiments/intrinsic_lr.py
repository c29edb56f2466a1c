"""The runs of Li, Lyu & Arora (2020) at the size of the paper, which chapters 11 to 14 draw.

An arm is a list of phases: factors on learning rate and weight decay, and a length in units of 1/(lr * weight_decay)
steps. Size "digits" has arms of its own: full batch on 100 digits that the net fits, at four rates and without decay:
python -m normcore.experiments intrinsic_lr --size digits --seeds 0 1 2
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normcore.checks import checked_choice
from normcore.experiments import stored
from normcore.lab.data.dataset import Dataset
from normcore.lab.training.loop import Batches, at_each_step
from normcore.lab.training.probes import SWA, Probe, Stateful, accuracy_on, direction, trainable, weight_norm
from normcore.norm_dynamics.monitor import NormMonitor

Phase = tuple[float, float, float]
"""Factor on lr, factor on weight_decay, length in units of 1/(lr * weight_decay) steps."""

FIRST, SECOND, LONG = 12.0, 13.0, 60.0
"""Lengths in the units of the base: to the equilibrium; after a change by ten, whose own unit is ten times longer; to the
equilibrium after that."""


def _drawn(generator: np.random.Generator) -> list[Phase]:
    """Both factors log-uniform over a decade either way, the product at most 3; 5 units."""
    drawn = zip(*10 ** generator.uniform(-1, 1, (2, 3)), (2, 2, 1), strict=True)
    return [(float(lr), min(float(decay), 3 / float(lr)), length) for lr, decay, length in drawn]


_generator = np.random.default_rng(0)
DRAWN = {f"drawn {k}": _drawn(_generator) for k in range(1, 6)}
"""Five schedules by lot before a common one, whose runs share neither weights nor batches; the paper's were not at hand."""

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
    **{name: [*past, (1, 1, FIRST), (0.1, 0, 2)] for name, past in DRAWN.items()},
    "full batch": [(1, 1, 20), (1, 0, 5)],
}
ARMS = tuple(PHASES)
FITTED: dict[str, list[Phase]] = {
    **{f"full batch lr/{k}": [(1 / k, 1, 10 * k)] for k in (1, 2, 4, 8)},
    "full batch wd 0": [(1, 0, 10)],
}
PHASES |= FITTED


@dataclass(frozen=True)
class Setting(stored.Setting):
    """What all runs share; the defaults are the paper's net, data and rate."""

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


@dataclass(frozen=True)
class Fitted(Setting):
    """Few images and a head long enough for the loss to come near zero."""

    head_scale: float = 5.0


PHOTOGRAPHS: dict[str, Any] = {"dataset": "image-folder", "image_size": 16, "train": 20_000, "test": 1000}
SMALL = Setting(**PHOTOGRAPHS, depth=8, width=8, batch_size=64, weight_decay=8e-3, crop=2, full_batch=250)
ON_DIGITS: dict[str, Any] = {"dataset": "digits", "depth": 8, "width": 4, "batch_size": 100}
TINY = Setting(**ON_DIGITS, weight_decay=0.125, crop=0, flip=False, readings=2, full_batch=100)
DIGITS = Fitted(**ON_DIGITS, test=100, lr=0.4, weight_decay=0.025, crop=0, flip=False, full_batch=100)


def rates_of(arm: str, setting: Setting) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The learning rate and the weight decay of each step of an arm, (T,) each."""
    checked_choice("arm", arm, list(PHASES))
    phases = PHASES[arm]
    lengths = [round(length * setting.unit) for _, _, length in phases]
    lr, weight_decay = (np.repeat([phase[i] for phase in phases], lengths) for i in (0, 1))
    return lr * setting.lr, weight_decay * setting.weight_decay


class MonitorReading:
    """A probe that reads group 0 of a NormMonitor: rho, angle and S; nan before the first step."""

    NAMES = ("rho", "angle", "grad_sq_norm")

    def __init__(self, monitor: NormMonitor) -> None:
        self.monitor = monitor
        self.state_dict, self.load_state_dict = monitor.state_dict, monitor.load_state_dict  # for checkpoints

    def __call__(self, model: nn.Module) -> Tensor:
        if not self.monitor.steps:
            return torch.full((len(self.NAMES),), torch.nan)
        log = self.monitor.log()
        return torch.tensor([log[f"group0/{name}"] for name in self.NAMES])


class Chord(Stateful):
    """A probe: the distance of the weights' direction from where it was at a reading, counted from 0; nan before."""

    kept = (("count", int), ("start", Tensor | None))

    def __init__(self, reading: int) -> None:
        self.reading, self.count = reading, 0
        self.start: Tensor | None = None

    def __call__(self, model: nn.Module) -> float:
        now = direction(model)
        self.start = now if self.count == self.reading else self.start
        self.count += 1
        return math.nan if self.start is None else float((now - self.start.to(now)).norm())


def train_arm(
    arm: str, seed: int, setting: Setting, data: Dataset, *, folder: Path | None = None, **options: Any
) -> tuple[dict[str, Any], int | None]:
    """Train one arm from one seed; see `LongRuns`.

    SGD without momentum; weight decay coupled, on all trained weights; batch statistics in training and testing. "full
    batch" takes few training images whole, without augmentation.

    At every reading, the first before step 0: "step", "lr", "weight_decay", "norm", "rho", "angle", "grad_sq_norm" (means
    over about 1/(lr wd) steps), "test_accuracy", "test_loss", "swa_accuracy" (average over the last phase, or over the
    second half of an only one), "chord" (from the middle of the first phase); since the reading before: "train_loss"
    (mean), "worst_loss" (highest batch loss), both nan at the first. Of arms that fit, 250 readings of "step", "norm",
    "test_accuracy", "worst_loss" and "train_accuracy". Other options are those of `lab.train`.
    """
    lr, weight_decay = rates_of(arm, setting)
    seed += 1_000 * (1 + list(DRAWN).index(arm)) if arm in DRAWN else 0
    steps, unit = len(lr), setting.unit
    every = max(1, steps // 250 if arm in FITTED else unit // setting.readings)
    if arm.startswith("full batch"):
        data = data.subset(train=setting.full_batch, seed=seed)
        batches: Batches = [(data.x_train, data.y_train)] * steps
    else:
        draw, crop, flip = (steps, setting.batch_size, seed), setting.crop, setting.flip
        batches = data.batches(*draw, replacement=False, crop=crop, flip=flip)
    net = stored.residual_net(setting, data, seed)
    if isinstance(setting, Fitted):
        net[-1].weight.data *= setting.head_scale  # type: ignore[index]
    optimizer = torch.optim.SGD(trainable(net), lr=setting.lr, weight_decay=setting.weight_decay)
    first, last = (round(PHASES[arm][i][2] * unit) for i in (0, -1))
    averaging = steps // 2 if len(PHASES[arm]) == 1 else steps - last
    probes: dict[str, Probe] = {
        "monitor": MonitorReading(NormMonitor(optimizer, horizon=unit)),
        "norm": weight_norm,
        "swa_accuracy": SWA(data.x_test, data.y_test, first=averaging // every, chunk=stored.CHUNK),
        "chord": Chord(first // 2 // every),
    }
    if arm in FITTED:
        probes["train_accuracy"] = accuracy_on(data.x_train, data.y_train)
    options |= {"before_step": at_each_step(optimizer, lr=lr, weight_decay=weight_decay), "folder": folder}
    history = stored.fit(net, optimizer, batches, data, every=every, probes=probes, **options)
    pieces = [history.loss[a:b] for a, b in pairwise(history.step)]
    at = np.minimum(history.step, steps - 1)
    names = ("norm", "test_accuracy", "test_loss", "swa_accuracy", "chord")
    records: dict[str, Any] = {
        "step": history.step,
        "lr": lr[at],
        "weight_decay": weight_decay[at],
        **{name: history[name] for name in names},
        **dict(zip(MonitorReading.NAMES, history["monitor"].T, strict=True)),
        "train_loss": [math.nan, *(piece.mean() for piece in pieces)],
        "worst_loss": [math.nan, *(piece.max() for piece in pieces)],
    }
    if arm in FITTED:
        kept = {name: records[name] for name in ("step", "norm", "test_accuracy", "worst_loss")}
        records = kept | {"train_accuracy": history["train_accuracy"]}
    return records, history.diverged_at


SETTINGS = {"paper": Setting(), "small": SMALL, "digits": DIGITS, "tiny": TINY}
RUNS = stored.LongRuns("intrinsic_lr", SETTINGS, ARMS, train_arm, {"digits": tuple(FITTED)})
