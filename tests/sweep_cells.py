"""Experiments for the tests of sweeps, importable by worker processes."""

import os
import random
import signal
import time
from dataclasses import dataclass

import numpy as np
import torch

spend = time.sleep
"""How `Counting` passes its time."""

DEATHS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
}


def draw(lr, seed=0, kind="fine", pause=0.0):
    """Numbers from the global generators, or the planted end."""
    time.sleep(pause)
    if kind in DEATHS:
        DEATHS[kind]()
    if kind == "raise":
        raise RuntimeError("planted")
    if kind == "leave":
        raise SystemExit("planted")
    if kind == "nan":
        return {"sum": np.nan, "diverged_at": 4}
    values = [float(torch.rand(())), random.random(), float(np.random.rand())]
    return {"drawn": np.array(values), "sum": lr + seed, "diverged_at": None}


def threads(lr):
    """How many threads torch has where the cell is computed."""
    return {"threads": torch.get_num_threads()}


def trace(lr, file):
    """Leave a line in a file: each computation is counted."""
    with open(file, "a") as lines:
        lines.write(f"{lr}\n")
    return {"lr2": lr**2}


@dataclass(frozen=True)
class Counting:
    """An experiment that can be computed together, and whose two ways take the time they are given."""

    alone: float = 0.0
    together_: float = 0.0
    steps: int = 100
    broken: bool = False
    fixed: float = 0.0

    def shortened(self, steps):
        return Counting(self.alone, self.together_, steps, self.broken, self.fixed)

    def __call__(self, lr):
        spend(self.fixed + self.alone * self.steps)
        if lr < 0:
            raise ValueError(f"lr must be >= 0, got {lr}")
        return {"way": 0.0, "lr2": lr**2}

    def together(self, cells):
        if self.broken or any(cell["lr"] < 0 for cell in cells):
            raise ValueError("not together")
        spend(self.fixed + self.together_ * self.steps * len(cells))
        return [{"way": 1.0, "lr2": cell["lr"] ** 2} for cell in cells]


class NoGoodHere:
    """Pickles, and cannot be loaded."""

    def __call__(self, lr):
        return {"lr2": lr**2}

    def __reduce__(self):
        return _refuse, ()


class StuckHere(NoGoodHere):
    """The same, and it can be timed."""

    steps = 100

    def shortened(self, steps):
        short = StuckHere()
        short.steps = steps
        return short

    def __call__(self, lr):
        time.sleep(1e-3 * self.steps)
        return {"lr2": lr**2}


def _refuse():
    raise ImportError("planted: there is no such module")


class DiesHere:
    """Pickles, and kills the process that loads it."""

    def __call__(self, lr):
        return {"lr2": lr**2}

    def __reduce__(self):
        return os._exit, (3,)
