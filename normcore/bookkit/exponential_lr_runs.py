"""The runs of Li & Arora (2020) at the size of the paper, stored as a data file that chapter 8 draws.

    python -m normcore.bookkit.exponential_lr_runs --data FOLDER            all arms, three seeds each
    python -m normcore.bookkit.exponential_lr_runs --arms texp --seeds 0    some of them
    python -m normcore.bookkit.exponential_lr_runs --tiny                   the whole path in seconds

Killed and started again, the same command goes on where it was. Each finished run is in the file at once.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normcore.bookkit import stored
from normcore.lab.data import Dataset, load_dataset
from normcore.lab.history import History
from normcore.lab.probes import Angle, accuracy_on, loss_on, trainable, weight_norm
from normcore.lab.resnets import preresnet
from normcore.lab.train import train
from normcore.schedules import Cosine, StepDecay
from normcore.theorems import texp, texp_plus_plus
from normcore.wd_free_run import EquivalentSchedule

ARMS = ("step decay", "texp", "texp--", "texp++", "cosine", "cosine twin")
OUT = Path("book/data/exponential_lr.json")
CHUNK = 1000
"""Test images whose statistics a norm sees at once."""


@dataclass(frozen=True)
class Setting:
    """What all runs share; the defaults are the paper's."""

    dataset: str = "cifar10"
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


class FirstStepAngle:
    """The angle of the first step of each epoch: told of every step, read as a probe once an epoch.

    A reading is that of the epoch that ends, and nan at the start.
    """

    def __init__(self, epoch: int) -> None:
        """Start without a reading; `epoch` is its length in steps, >= 2."""
        self.epoch, self.angle, self.last = epoch, Angle(), math.nan

    def before_step(self, t: int, model: nn.Module) -> None:
        """Take note of the weights before the first and the second step of an epoch."""
        if t % self.epoch == 0:
            self.angle = Angle()
        if t % self.epoch <= 1:
            self.last = self.angle(model)

    def __call__(self, model: nn.Module) -> float:
        """Read the last angle."""
        return self.last

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"last": self.last, "angle": self.angle.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.last = state["last"]
        self.angle.load_state_dict(state["angle"])


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


def in_chunks(
    make_probe: Callable[[Tensor, Tensor], Callable[[nn.Module], float]], x: Tensor, y: Tensor
) -> Callable[[nn.Module], float]:
    """Make a probe that averages another over parts of 1,000 examples, so that memory stays small."""
    parts = list(zip(x.split(CHUNK), y.split(CHUNK), strict=True))
    probes = [(make_probe(*part), len(part[1]) / len(y)) for part in parts]
    return lambda model: sum(probe(model) * share for probe, share in probes)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data", help="folder of the data set (default: data)")
    parser.add_argument(
        "--dataset", default="", help="cifar10 (default), or image-folder with --data its root"
    )
    parser.add_argument("--download", action="store_true", help="let torchvision fetch missing files")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile with CUDA graphs")
    parser.add_argument("--out", type=Path, help=f"the data file (default: {OUT}, --tiny: below --work)")
    parser.add_argument("--work", type=Path, help="checkpoints (default: below _build)")
    parser.add_argument("--tiny", action="store_true", help="two epochs of a small net on digits")
    given = parser.parse_args(arguments)
    work = given.work or Path("_build") / ("exponential_lr_tiny" if given.tiny else "exponential_lr")
    out = given.out or (work / OUT.name if given.tiny else OUT)
    base = asdict(TINY if given.tiny else Setting())
    setting = Setting(**{**base, "dataset": given.dataset or base["dataset"]})
    data = load_dataset(setting.dataset, given.data, given.download, device=given.device)
    have = stored.load(out)
    done = {(run["arm"], run["seed"]) for run in have.runs} if have else set()
    for seed in given.seeds:
        for arm in given.arms:
            if (arm, seed) in done:
                print(f"stored before: {arm}, seed {seed}", flush=True)
                continue
            folder = work / f"{arm.replace(' ', '-')}-{seed}"
            options = {"compile": "reduce-overhead" if given.compile else False}
            records, diverged_at = train_arm(arm, seed, setting, data, folder=folder, **options)
            about = {"arm": arm, "seed": seed, "diverged_at": diverged_at, "device": given.device}
            stored.add_run(out, asdict(setting), records=records, **about)
            print(f"{arm}, seed {seed}: test accuracy {records['test_accuracy'][-1]:.4f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
