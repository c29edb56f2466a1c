"""The runs of Lewkowycz et al. (2020) on photographs, stored as a data file that chapters 16 and 17 draw.

    python -m normcore.experiments catapult --data FOLDER                      all arms, three seeds each
    python -m normcore.experiments catapult --arms "wrn 2.5" --seeds 0         some of them
    python -m normcore.experiments catapult --size small --data PHOTOGRAPHS    small nets, for CPUs
    python -m normcore.experiments catapult --size tiny                        the whole path in seconds

An arm is a net and a learning rate c in units of one over the initial curvature. "cnn" has two convolutions; "wrn"
is a Wide ResNet without norms; "zero" is the cnn minus its first function, so that it starts at output zero. All
run for the same physical time c times steps. Killed and started again, the same command goes on where it was.
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

from normcore.curvature.ntk import ntk_top_eigenvalue
from normcore.experiments.long_runs import DataSetting, LongRuns, command_line
from normcore.experiments.probes import in_chunks
from normcore.lab.data.dataset import Dataset
from normcore.lab.nets.plain import cnn
from normcore.lab.nets.resnets import preresnet
from normcore.lab.training.history import History
from normcore.lab.training.loop import train
from normcore.lab.training.probes import accuracy_on, loss_on

NETS = ("cnn", "zero", "wrn")
RATES = (1.0, 1.5, 1.9, 2.2, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0)
ARMS = tuple(f"{net} {c:g}" for net in NETS for c in RATES)
IN_MEMORY = 512
"""Images whose activations are held at once when a curvature is measured."""
EARLY = 100
"""Steps of which every batch loss is kept."""


@dataclass(frozen=True)
class Setting(DataSetting):
    """What all runs share; the defaults are WRN-16-4 (with a stem of 64 channels) and CIFAR-10."""

    channels: tuple[int, ...] = (128, 256)
    depth: int = 14
    width: int = 64
    batch_size: int = 256
    time: float = 60_000.0
    curvature_images: int = 2048
    readings: int = 40


SMALL = Setting("image-folder", 16, 5_000, 1_000, (32, 128), 8, 16, 64, 5_000.0, 128, readings=20)
TINY = Setting("digits", None, 300, 300, (16, 32), 8, 8, 100, 120.0, 100, readings=10)


def half_mse(output: Tensor, y: Tensor) -> Tensor:
    """Return 1/(2m) sum over inputs and outputs of (f - one-hot label)^2."""
    return (output - one_hot(y, output.shape[1])).pow(2).sum() / (2 * len(y))


class FromZero(nn.Module):
    """A net minus what it computes at the start: same tangent kernel, output zero."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.first = net, copy.deepcopy(net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """The difference."""
        return self.net(x) - self.first(x)  # type: ignore[no-any-return]


def make_net(name: str, seed: int, setting: Setting, channels: int, classes: int) -> nn.Module:
    """Build a net without norms, all weights drawn as He et al. (2015) do, so that outputs are of order 1.

    Args:
        name: one of `NETS`.
        seed: of the weights.
        setting: channels, depth and width count.
        channels: of the images.
        classes: outputs.

    Raises:
        ValueError: the name is unknown.

    """
    if name not in NETS:
        raise ValueError(f"name must be one of {list(NETS)}, got {name!r}")
    options: dict[str, Any] = {"norm": "none", "head": "trained", "in_channels": channels, "classes": classes}
    wide = name == "wrn"
    net = (
        preresnet(setting.depth, width=setting.width, **options) if wide else cnn(setting.channels, **options)
    )
    generator = torch.Generator().manual_seed(seed)
    for weight in net.parameters():
        nn.init.kaiming_normal_(weight, generator=generator)
    return FromZero(net) if name == "zero" else net


class CurvatureAt:
    """A probe: the top eigenvalue of the tangent kernel at some readings; nan at others and once weights overflow."""

    def __init__(self, x: Tensor, readings: Sequence[int]) -> None:
        """Measure on x, at readings counted from 0."""
        self.x, self.readings, self.count = x, readings, 0

    def __call__(self, model: nn.Module) -> float:
        """Read the curvature, as a probe."""
        self.count += 1
        finite = all(bool(p.isfinite().all()) for p in model.parameters())
        if self.count - 1 not in self.readings or not finite:
            return math.nan
        return ntk_top_eigenvalue(model, self.x, tol=1e-2, chunk_size=_chunk(self.x)).value

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint must keep."""
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a checkpoint."""
        self.count = state["count"]


def train_arm(
    arm: str, seed: int, setting: Setting, data: Dataset, *, folder: Path | None = None, **options: Any
) -> tuple[dict[str, Any], int | None]:
    """Train one arm from one seed, which draws weights and batches: SGD, square loss, nothing else.

    Args:
        arm: one of `ARMS`.
        seed: of everything.
        setting: of all runs.
        data: on the device to train on.
        folder: for checkpoints; None makes none.
        **options: of `lab.train`: compile, autocast, channels_last, progress.

    Returns:
        (records, diverged_at). "rate" (lr, c and the initial curvature on the first training images); "early_loss" (the
        batch loss of each of the first 100 steps); at every reading: "step", "time" (c times steps),
        "train_loss" (on the images of the curvature), "test_accuracy", "test_loss", "curvature" (at the start,
        after a tenth of the time and at the end, nan between).

    Raises:
        ValueError: the arm is unknown.

    """
    if arm not in ARMS:
        raise ValueError(f"arm must be a net of {list(NETS)} and a rate of {list(RATES)}, got {arm!r}")
    name, c = arm.split()[0], float(arm.split()[1])
    net = make_net(name, seed, setting, data.pixels_train.shape[1], data.classes).to(data.pixels_train.device)
    seen = data.subset(train=min(setting.curvature_images, len(data.y_train)))
    start = ntk_top_eigenvalue(net, seen.x_train, tol=1e-3, chunk_size=_chunk(seen.x_train))
    lr, steps = c / start.value, max(EARLY, round(setting.time / c))
    every = max(1, steps // setting.readings)
    last = math.ceil(steps / every)
    history = train(
        net,
        torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=lr),
        data.batches(steps, setting.batch_size, seed, replacement=False),
        loss_fn=half_mse,
        probes={
            "train_loss": in_chunks(half_mse_on, seen.x_train, seen.y_train),
            "test_accuracy": in_chunks(accuracy_on, data.x_test, data.y_test),
            "test_loss": in_chunks(half_mse_on, data.x_test, data.y_test),
            "curvature": CurvatureAt(seen.x_train, (0, last // 10, last)),
        },
        every=every,
        checkpoint=folder,
        checkpoint_every=every,
        **options,
    )
    return _records(history, (lr, c, start.value)), history.diverged_at


def _chunk(x: Tensor) -> int | None:
    """The chunk size; None where everything fits, for chunks cost one gradient more a product."""
    return IN_MEMORY if len(x) > IN_MEMORY else None


def half_mse_on(x: Tensor, y: Tensor) -> Any:
    """Make a probe: the square loss on fixed inputs."""
    return loss_on(x, y, half_mse)


def _records(history: History, rate: tuple[float, float, float]) -> dict[str, Any]:
    """What is kept of a run."""
    read = {name: history[name] for name in ("train_loss", "test_accuracy", "test_loss", "curvature")}
    when = {"step": history.step, "time": history.step * rate[1]}
    return {"rate": np.array(rate), "early_loss": history.loss[:EARLY], **when, **read}


RUNS = LongRuns("catapult", ARMS, {"paper": Setting(), "small": SMALL, "tiny": TINY}, train_arm)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return command_line(RUNS, __doc__ or "", arguments)
