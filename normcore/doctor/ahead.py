"""The run that lies ahead: the rates a scheduler will give, and where they lead the norms of each group."""

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from normcore.doctor.findings import Finding, say
from normcore.norm_dynamics.equilibrium import Equilibrium, equilibrium
from normcore.norm_dynamics.rates import look_up, rates_of
from normcore.schedules import FloatArray

JUMP, ISOLATED = 1.5, 3.0
"""A change of phase: lr or weight decay move by more than this factor in a step, in logarithms this many times
more than in the steps beside it (else it is the slope of a warm-up, or the foot of a cosine)."""


def rates_ahead(optimizer: Optimizer, scheduler: Any, steps: int, every: int) -> FloatArray:
    """Lr, weight decay and momentum of each group at each step, (groups, steps, 3), read off a copy of the scheduler.

    They start where both stand now; `every` steps lie between two calls of `scheduler.step()`. One that follows a
    metric counts as none. Where an optimizer has no closed form the momentum is nan.
    """
    twin = object.__new__(type(optimizer))  # shares the weights, owns its groups: only these move
    groups = [{**group, "lr": float(group["lr"])} for group in optimizer.param_groups]
    twin.__dict__.update(optimizer.__dict__, param_groups=groups)
    ahead = np.repeat(_rates_now(twin)[:, None], steps, axis=1)
    if scheduler is None or isinstance(scheduler, ReduceLROnPlateau):
        return ahead
    follower = copy.deepcopy(scheduler, {id(optimizer): twin})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the optimizer's own steps in between
        for t in range(every, steps, every):
            follower.step()
            ahead[:, t : t + every] = _rates_now(twin)[:, None]
    return ahead


def _rates_now(optimizer: Optimizer) -> FloatArray:
    """(groups, 3), with dampening folded into lr."""
    rows = []
    for group in optimizer.param_groups:
        rates = rates_of(optimizer, group)
        unknown = (group["lr"], group.get("weight_decay", 0.0), math.nan)
        rows.append(unknown if rates is None else (rates.lr, rates.weight_decay, rates.momentum))
    return np.array(rows, dtype=np.float64)


def changes(rates: FloatArray) -> list[int]:
    """The steps at which lr or weight decay, > 0 before and after, jumps; rates of shape (steps, 3)."""
    positive = np.where(rates[:, :2] > 0, rates[:, :2], np.nan)
    moves = np.pad(np.nan_to_num(np.abs(np.diff(np.log(positive), axis=0))), ((1, 1), (0, 0)))
    beside = np.maximum(moves[:-2], moves[2:])
    jumped = (moves[1:-1] > math.log(JUMP)) & (moves[1:-1] > ISOLATED * beside)
    return [int(t) + 1 for t in np.flatnonzero(jumped.any(axis=1))]


def course(rates: FloatArray, family: str, start: float) -> tuple[FloatArray, FloatArray]:
    """The effective learning rate at each step, and its equilibrium value at that step's hyper-parameters.

    With p the family's power and s the size of the gradients (S; AdamW: the number of weights), q = |w|^p/s
    obeys dq/dt = -p lambda_e q + (p/2) rate^2 with rate = lr/(1-momentum) (AdamW: lr): solved exactly within each
    step, from q = start. Both rates, shape (steps,), are in units that make s = 1; the second is 0 without decay.
    """
    lr, weight_decay, momentum = rates.T
    power = look_up(family).power
    rate = lr / (1.0 - momentum) if power == 4 else lr
    decay = power * rate * weight_decay
    share = np.where(decay > 0, -np.expm1(-decay) / np.where(decay > 0, decay, 1.0), 1.0)
    q = [start]
    for kept, added in zip(np.exp(-decay).tolist(), (share * power / 2 * rate**2).tolist(), strict=True):
        q.append(kept * q[-1] + added)
    return rate / np.sqrt(q[:-1]), np.sqrt(2 * rate * weight_decay)


@dataclass(frozen=True, eq=False)
class Group:
    """One group of the optimizer: names by role, hyper-parameters along the run, and its scale-free weights."""

    label: str
    names: Mapping[str, list[str]]
    family: str | None
    rates: FloatArray
    """(steps, 3), of `rates_ahead`."""
    betas: tuple[float, float] | None
    units: list[tuple[float, float, int]]
    """Norm, S = |g|^2 |w|^2 and count of each tensor, or joint set, that has an equilibrium of its own."""

    @property
    def free(self) -> bool:
        """Whether there is a scale-free tensor."""
        return bool(self.names["alone"] or self.names["jointly"])

    @property
    def peak(self) -> tuple[float, float, float]:
        """Lr, weight decay and momentum where lr times weight decay (failing that, lr) is largest."""
        order = np.lexsort((self.rates[:, 0], self.rates[:, 0] * self.rates[:, 1]))
        lr, weight_decay, momentum = self.rates[order[-1]].tolist()
        return lr, weight_decay, momentum

    @property
    def norm(self) -> float:
        """Of all units together."""
        return math.sqrt(sum(norm**2 for norm, _, _ in self.units))

    @property
    def size(self) -> float:
        """The S (AdamW: the count) with which the closed form gives the joint norm of units that are all at theirs."""
        if self.family == "adamw":
            return sum(count for _, _, count in self.units)
        return sum(math.sqrt(s) for _, s, _ in self.units) ** 2

    def equilibrium(self) -> Equilibrium:
        """That of all units together, at the peak; ValueError says why there is none."""
        lr, weight_decay, momentum = self.peak
        if self.family is None:
            raise ValueError("this optimizer has no closed form: norm, angle, time constant cannot be said")
        if not self.units:
            raise ValueError(
                "these weights have no gradient here, or only with other groups are they scale-free"
            )
        if lr * weight_decay == 0:
            raise ValueError("no weight decay: the norm only grows, and the effective rate falls for ever")
        if self.family == "adamw":
            return equilibrium(lr, weight_decay, optimizer="adamw", betas=self.betas, dim=int(self.size))
        return equilibrium(lr, weight_decay, momentum, optimizer=self.family, grad_sq_norm=self.size)

    def planned(self, batch: float, epochs: float) -> Finding:
        """Its hyper-parameters at `batch` times the batch size and `epochs` times the epochs."""
        name, steps = f"plan/{self.label}", max(1, round(len(self.rates) * epochs / batch))
        if self.family is None:
            return say(name, "no rule is known for this optimizer", "note")
        root = batch**0.5 if self.family == "adamw" else batch
        lr, weight_decay, _ = self.peak
        new: dict[str, Any] = {"lr": lr * root, "weight_decay": weight_decay * batch / root, "steps": steps}
        hints = []
        if self.betas is not None and batch != 1:
            new["betas"] = [max(0.0, 1 - batch * (1 - beta)) for beta in self.betas]
            hints.append(f"betas {', '.join(f'{beta:.4g}' for beta in new['betas'])}")
            if 0.0 in new["betas"]:
                hints.append("a beta has come to 0, where the rule ends")
        if self.free and weight_decay and epochs != 1:
            new["weight_decay"] /= epochs
            if self.names["rest"]:
                hints.append(
                    "this also moves the penalty on its other weights: split the group (nc.param_groups)"
                )
        text = f"lr {lr:.4g} -> {new['lr']:.4g}, weight decay {weight_decay:.4g} -> {new['weight_decay']:.4g}"
        return say(name, "; ".join([f"{text}, steps {len(self.rates):,} -> {steps:,}", *hints]), **new)
