"""The runs of Lewkowycz et al. (2020) on photographs, which chapters 17 and 19 draw.

An arm is a net and a learning rate c in units of one over the initial curvature. "cnn" has two convolutions; "wrn"
is a Wide ResNet without norms; "zero" and "wrn-zero" are they minus their first function, so that they start at output
zero. All run for the same physical time c times steps, but those of size "digits", sixty full batches of thirty
digits each: python -m normcore.experiments catapult --size digits --seeds 0 1 2 3 4 5 6 7
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from normcore.checks import NonFiniteError, checked_choice
from normcore.curvature.ntk import ntk_top_eigenvalue
from normcore.experiments import stored
from normcore.lab.data.dataset import Dataset
from normcore.lab.nets.layers import cnn
from normcore.lab.nets.residual import preresnet
from normcore.lab.training.probes import Stateful, loss_on, trainable

NETS = ("cnn", "zero", "wrn", "wrn-zero")
RATES = (1, 1.5, 1.9, 2.2, 2.5, 3, 3.5, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 32)
ARMS = tuple(f"{net} {c:g}" for net in NETS for c in RATES)
IN_MEMORY = 512
"""Images whose activations are held at once when a curvature is measured."""
EARLY = 100
"""Steps of which every batch loss is kept."""


@dataclass(frozen=True)
class Setting(stored.Setting):
    """What all runs share; the defaults are WRN-16-4 (with a stem of 64 channels) and CIFAR-10."""

    depth: int = 14
    width: int = 64
    batch_size: int = 256
    channels: tuple[int, ...] = (128, 256)
    time: float = 60_000.0
    curvature_images: int = 2048
    readings: int = 40

    def steps(self, c: float) -> int:
        """How many steps a run takes at a rate."""
        return max(EARLY, round(self.time / c))

    def curvature_at(self, last: int) -> tuple[int, ...]:
        """The readings, counted from 0, at which the curvature is measured."""
        return 0, last // 10, last


class Flights(Setting):
    """A few images, on which a curvature is cheap: the first steps are all there is, as many at every rate."""

    def steps(self, c: float) -> int:
        return round(self.time)

    def curvature_at(self, last: int) -> tuple[int, ...]:
        return 1, 2, 4, last


PHOTOGRAPHS: dict[str, Any] = {"dataset": "image-folder", "image_size": 16, "train": 5_000, "test": 1_000}
FOR_CPUS: dict[str, Any] = {"depth": 8, "width": 16, "batch_size": 64, "channels": (32, 128)}
SMALL = Setting(**PHOTOGRAPHS, **FOR_CPUS, time=5_000.0, curvature_images=128, readings=20)
ON_DIGITS: dict[str, Any] = {"dataset": "digits", "train": 300, "test": 300, "depth": 8, "width": 8}
FLOWN = {**ON_DIGITS, "train": 30, "test": 10, "width": 16, "batch_size": 30, "channels": (64, 64)}
DIGITS = Flights(**FLOWN, time=60.0, curvature_images=30, readings=15)
TINY = Setting(**ON_DIGITS, batch_size=100, channels=(16, 32), time=120.0, curvature_images=100, readings=10)


def half_mse(output: Tensor, y: Tensor) -> Tensor:
    """Return 1/(2m) sum over inputs and outputs of (f - one-hot label)^2."""
    return (output - one_hot(y, output.shape[1])).pow(2).sum() / (2 * len(y))


class FromZero(nn.Module):
    """A net minus what it computes at the start: same tangent kernel, output zero."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.first = net, copy.deepcopy(net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) - self.first(x)  # type: ignore[no-any-return]


def make_net(name: str, seed: int, setting: Setting, channels: int, classes: int) -> nn.Module:
    """Build a net of `NETS` without norms, all weights drawn as He et al. (2015) do: outputs are of order 1."""
    checked_choice("name", name, list(NETS))
    options: dict[str, Any] = {"norm": "none", "head": "trained", "in_channels": channels, "classes": classes}
    wide = name.startswith("wrn")
    net = (
        preresnet(setting.depth, width=setting.width, **options) if wide else cnn(setting.channels, **options)
    )
    generator = torch.Generator().manual_seed(seed)
    for weight in net.parameters():
        nn.init.kaiming_normal_(weight, generator=generator)
    return FromZero(net) if name.endswith("zero") else net


class CurvatureAt(Stateful):
    """A probe: `curvature` at some readings, counted from 0; nan at others and once the net overflows."""

    kept = (("count", int),)

    def __init__(self, x: Tensor, readings: Sequence[int]) -> None:
        self.x, self.readings, self.count = x, readings, 0

    def __call__(self, model: nn.Module) -> float:
        due = self.count in self.readings
        self.count += 1
        try:
            return curvature(model, self.x, 1e-2) if due else math.nan
        except NonFiniteError:
            return math.nan


def curvature(model: nn.Module, x: Tensor, tol: float) -> float:
    """The top eigenvalue of the tangent kernel; chunks cost one gradient more a product, so only where they must be."""
    chunk = IN_MEMORY if len(x) > IN_MEMORY else None
    return ntk_top_eigenvalue(model, x, tol=tol, chunk_size=chunk).value


def train_arm(
    arm: str, seed: int, setting: Setting, data: Dataset, *, folder: Path | None = None, **options: Any
) -> tuple[dict[str, Any], int | None]:
    """Train one arm from one seed: SGD, square loss, nothing else; see `LongRuns`.

    "rate" (lr, c and the initial curvature on the first training images); "early_loss" (the batch loss of each of the
    first 100 steps); at every reading: "step", "time" (c times steps), "train_loss" (on the images of the curvature),
    "test_accuracy", "test_loss", "curvature" (at the start, after a tenth of the time and at the end, nan between;
    of `Flights` at steps 4, 8, 16 and 60).
    Other options are those of `lab.train`.
    """
    if arm not in ARMS:
        raise ValueError(f"arm must be a net of {list(NETS)} and a rate of {list(RATES)}, got {arm!r}")
    name, c = arm.split()[0], float(arm.split()[1])
    net = make_net(name, seed, setting, data.pixels_train.shape[1], data.classes).to(data.pixels_train.device)
    seen = data.subset(train=min(setting.curvature_images, len(data.y_train)))
    start = curvature(net, seen.x_train, 1e-3)
    lr, steps = c / start, setting.steps(c)
    every = max(1, steps // setting.readings)
    last = math.ceil(steps / every)
    probes = {
        "train_loss": loss_on(seen.x_train, seen.y_train, half_mse, chunk=stored.CHUNK),
        "curvature": CurvatureAt(seen.x_train, setting.curvature_at(last)),
    }
    batches = data.batches(steps, setting.batch_size, seed, replacement=False)
    kept = folder if steps >= EARLY else None  # a shorter run is sooner made again than saved
    options |= {"loss_fn": half_mse, "folder": kept, "every": every, "probes": probes}
    history = stored.fit(net, torch.optim.SGD(trainable(net), lr=lr), batches, data, **options)
    names = ("train_loss", "test_accuracy", "test_loss", "curvature")
    records = {
        "rate": np.array([lr, c, start]),
        "early_loss": history.loss[:EARLY],
        "step": history.step,
        "time": history.step * c,
        **{name: history[name] for name in names},
    }
    return records, history.diverged_at


SETTINGS = {"paper": Setting(), "small": SMALL, "digits": DIGITS, "tiny": TINY}
RUNS = stored.LongRuns("catapult", SETTINGS, ARMS, train_arm)
