"""The run that lies ahead, and what the doctor says: findings with their sources, and three ways to show them."""

import copy
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from itertools import groupby
from textwrap import fill
from typing import Any

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from normcore.checks import checked_number
from normcore.norm_dynamics.equilibrium import Equilibrium, equilibrium
from normcore.norm_dynamics.rates import look_up, rates_of
from normcore.schedules import FloatArray

WIDTH = 80
MARKS = {"ok": " ", "note": "-", "warning": "!"}
GROUNDS = {
    "scale-free": ("Li & Arora 2020, Lemma 1.3", "this batch, in train mode, stands for all"),
    "weight decay": ("Li & Arora 2020; Li, Lyu & Arora 2020", "the verdicts above"),
    "equilibrium": (
        "Li, Lyu & Arora 2020; angle Wan et al. 2021, Kosson et al. 2024",
        "S as on this batch (learning lowers it), zero-mean noise; AdamW: noise alone, steady second moment",
    ),
    "run": ("Li, Lyu & Arora 2020", "constant S, small steps, the norm as it is now"),
    "change": ("Li, Lyu & Arora 2020; closed form nc.relaxation", "constant S, small steps"),
    "eps": (
        "this project, measured",
        "an eps is an attribute, its effect goes as 1/|w|^2; Adam's v is now g^2",
    ),
    "curvature": (
        "measured; edges Lewkowycz et al. 2020, with momentum Cohen et al. 2021",
        "squared loss, plain gradient descent, a wide net at its start; elsewhere a heuristic",
    ),
    "plan": (
        "Li, Malladi & Arora 2021; AdamW Malladi et al. 2022; weight decay this project",
        "noise well above the signal, rates below the edge, the schedule stretched alike",
    ),
}
"""Topic -> source and assumption, in the order of the page."""


@dataclass(frozen=True)
class Finding:
    """One statement: its `text`, the numbers in it (`value`), where it comes from and what it assumes.

    `name` is "topic" or "topic/group"; `level` is "ok", "note" (worth knowing) or "warning" (worth a change).
    """

    name: str
    text: str
    value: Mapping[str, Any]
    source: str
    assumption: str
    level: str = "ok"

    @property
    def topic(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    @property
    def tag(self) -> str:
        """Source and assumption in brackets."""
        return f"[{self.source}; assumes: {self.assumption}]"


def say(name: str, text: str, level: str = "ok", /, **value: Any) -> Finding:
    """A finding with the source and the assumption of its topic."""
    return Finding(name, text, value, *GROUNDS[name.partition("/")[0]], level)


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What `diagnose` found: print it, show it in a notebook, or take `to_json()`.

    `d["equilibrium/group 0"]` is one finding, `d.findings` are all; `groups` is what `plan` works from.
    """

    title: str
    findings: tuple[Finding, ...]
    groups: tuple[Any, ...] = ()

    def __getitem__(self, name: str) -> Finding:
        found = {finding.name: finding for finding in self.findings}
        if name not in found:
            raise KeyError(f"no finding named {name!r}; there are {sorted(found)}")
        return found[name]

    @property
    def warnings(self) -> list[str]:
        """Names of the findings with something to change."""
        return [finding.name for finding in self.findings if finding.level == "warning"]

    def plan(self, *, ratio_batch: float = 1.0, ratio_epochs: float = 1.0) -> "Diagnosis":
        """Give the hyper-parameters that keep the dynamics at another batch size or number of epochs.

        Scale-free weights keep the number of time constants in the run and, at another batch size, the ratio of
        drift to noise; for other weights these are the usual scaling rules. Stretch the schedule with the steps.

        Args:
            ratio_batch: new over present batch size, > 0.
            ratio_epochs: new over present number of epochs, > 0.

        Raises:
            ValueError: a ratio is not a finite number > 0.

        """
        batch = checked_number("ratio_batch", ratio_batch, above=0.0)
        epochs = checked_number("ratio_epochs", ratio_epochs, above=0.0)
        title = f"The same run at batch x{batch:g}, epochs x{epochs:g}"
        return Diagnosis(title, tuple(group.planned(batch, epochs) for group in self.groups))

    def as_dict(self) -> dict[str, Any]:
        """Title, warnings and findings as plain values; a number that does not exist is None."""
        findings = [_plain(asdict(finding)) for finding in self.findings]
        return {"title": self.title, "warnings": self.warnings, "findings": findings}

    def to_json(self) -> str:
        """The same as strict JSON."""
        return json.dumps(self.as_dict(), indent=1, allow_nan=False)

    def __str__(self) -> str:
        lines = [fill(self.title, WIDTH)]
        for head, findings in groupby(self.findings, lambda finding: finding.topic):
            lines += ["", head.upper()]
            for finding in findings:
                about = finding.name.partition("/")[2]
                text = f"{MARKS[finding.level]} {about}{': ' if about else ''}{finding.text}"
                lines.append(fill(text, WIDTH, subsequent_indent="  ", drop_whitespace=True))
            lines.append(fill(finding.tag, WIDTH, initial_indent="  ", subsequent_indent="   "))
        return "\n".join([*lines, "", fill(f"Warnings: {', '.join(self.warnings) or 'none'}", WIDTH)])

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td>{MARKS[f.level]}</td><td><b>{escape(f.name)}</b></td><td style='text-align: left'>"
            f"{escape(f.text)}<br><small>{escape(f.tag)}</small></td></tr>"
            for f in self.findings
        ]
        return f"<table><caption>{escape(self.title)}</caption>{''.join(rows)}</table>"


def _plain(value: Any) -> Any:
    """The value with None for nan and infinity."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
