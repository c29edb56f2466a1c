"""What the doctor says: findings with their sources, and three ways to show them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from itertools import groupby
from textwrap import fill
from typing import Any

from normcore.checks import checked_number

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
