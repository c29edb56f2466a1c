"""Checks that carry their claims: a number, a relation and a bound, recorded with what was measured.

Four kinds. A `paper` check tests a statement of a paper in a setting for which the paper states it; an `extension`
is ours; a `control` must fail where the claim that it guards holds, and its relation says how. Arithmetic on
constants is none of the three: it is an `assert`.
"""

import html
import json
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

from normcore.checks import checked_choice, checked_count, require_flags, require_type

RELATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "in": lambda value, bound: bound[0] <= value <= bound[1],
}
HELD, RESTRICTED = "held", "held with a restriction"
NOT_HELD, UNRESOLVED = "did not hold", "not resolved"
FAILED, NOT_FAILED = "failed, as it must", "did not fail"
"""The two verdicts of a control."""

UNEXPECTED = " (unexpected)"
"""Ends the verdict of a check that came out otherwise than the book says."""

SEPARATOR, NOTHING = " | ", "–"
ROUNDINGS = " roundings"
MOST_ROUNDINGS = 30
PAPERS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("rows.json").read_text("utf-8"))
"""Paper -> row -> what the row says; the last group, rows X, holds the extensions of this book."""

ROWS = {row: text for rows in PAPERS.values() for row, text in rows.items()}


@dataclass(frozen=True)
class Record:
    """A checked claim with what was measured."""

    id: str  # row and finer name, "E2/direction"
    kind: str  # "paper", "extension" or "control"
    measured: str  # the value, its standard error and its number of runs, "4.6 ± 0.6 (n = 10)"
    relation: str  # a key of RELATIONS
    bound: str  # in "roundings": the value is in units of the distance of two runs one rounding apart
    verdict: str  # see `claim`; ends in UNEXPECTED where it is not the one that the book states
    source: str  # who says so
    note: str  # the restriction of a claim in words, or the id that a control guards

    @property
    def value(self) -> float:
        """The measured number, to the digits that are stored."""
        return float(self.measured.split()[0])

    @property
    def row(self) -> str:
        """The row of the scoreboard."""
        return self.id.split("/")[0]

    @property
    def exact(self) -> bool:
        """Whether an exact statement was checked: in roundings, or a count that must be equal."""
        return self.bound.endswith(ROUNDINGS) or self.relation == "=="

    @property
    def unexpected(self) -> bool:
        """Whether this machine disagrees with the book."""
        return self.verdict.endswith(UNEXPECTED)


_records: dict[str, Record] = {}


def claim(
    id: str,
    value: SupportsFloat,
    relation: str,
    bound: Any,
    *,
    source: str = "",
    restriction: str = "",
    guards: str = "",
    n: int | None = None,
    se: SupportsFloat | None = None,
    exact: bool = False,
    expect: str = HELD,
) -> None:
    """Check `value relation bound` and record what came of it. A claim that fails does not stop the chapter.

    The kind follows from the id and `guards`: a control guards a claim, a row X holds extensions of this book, every
    other row is a statement of a paper.

    Args:
        id: a row of the scoreboard and a finer name: "E2/direction".
        value: the measured number.
        relation: "<", "<=", ">", ">=", "==" or "in" (a closed interval).
        bound: a number, or a pair for "in".
        source: paper and theorem, such as "Li & Arora 2020, Thm 2.1"; for a control, what is broken.
        restriction: in words, where the claim holds in a narrower form, does not hold, or is not resolved.
        guards: makes this a control of the named claim. The relation then says how the broken variant fails.
        n: number of independent runs behind the value.
        se: its standard error.
        exact: the value is a multiple of the distance of two runs that differ by one rounding.
        expect: "held"; "did not hold", where the book's finding is that the relation fails in the paper's own
            setting; "not resolved", where the setting has not the power: the value is shown, neither way judged.

    Raises:
        ValueError: an argument is unknown or missing, an exact bound is above 30 roundings, or the id was recorded
            with other content.

    Example:
        >>> claim("E2/example", 1e-12, "<", 1e-10, source="an example")
        >>> claim("E2/example-fails", float("nan"), "<", 1.0, source="an example")
        DOES NOT HOLD HERE  E2/example-fails: nan < 1
        >>> claim("E2/wrong-rate", 0.3, ">", 1e-3, source="the rate off by one", guards="E2/example")

    """
    require_type("value", value, SupportsFloat, "a number")
    number = float(value)
    if n is not None:
        checked_count("n", n)
    require_type("se", se, SupportsFloat | None, "a number or None")
    require_flags(exact=exact)
    _check(id, relation, bound, expect, restriction, guards, source, exact)
    kind = "control" if guards else "extension" if id.startswith("X") else "paper"
    true = not math.isnan(number) and bool(RELATIONS[relation](number, bound))
    verdict = _verdict(kind, true, expect, restriction, math.isnan(number))
    text = f"[{bound[0]:g}, {bound[1]:g}]" if isinstance(bound, Sequence) else f"{float(bound):g}"
    text += ROUNDINGS if exact else ""
    measured = f"{number:.4g}" + ("" if se is None else f" ± {float(se):.2g}")
    measured += "" if n is None else f" (n = {n})"
    record = Record(id, kind, measured, relation, text, verdict, source, guards or restriction)
    _keep(record)
    if record.unexpected:
        otherwise = "HOLDS HERE AFTER ALL" if verdict.startswith(HELD) else "DOES NOT HOLD HERE"
        words = "CONTROL DID NOT FAIL" if guards else otherwise
        print(f"{words}  {id}: {measured} {relation} {text}")


def _check(
    id: str, relation: str, bound: Any, expect: str, restriction: str, guards: str, source: str, exact: bool
) -> None:
    """Refuse what no record can hold."""
    words = {"id": id, "guards": guards, "source": source, "restriction": restriction}
    for name, text in words.items():
        require_type(name, text, str, "a text")
    for name, text in {"id": id, "guards": guards}.items():
        known = re.fullmatch(r"[A-Z]\d+/[a-z0-9-]+", text) and text.split("/")[0] in ROWS
        if not known and (text or name == "id"):
            raise ValueError(f"{name} must be a scoreboard row and a name, like 'E2/direction', got {text!r}")
    checked_choice("relation", relation, sorted(RELATIONS))
    if (relation == "in") != (isinstance(bound, Sequence) and len(bound) == 2):
        raise ValueError(
            f"bound must be a pair for 'in' and a number otherwise, got {bound!r} for {relation!r}"
        )
    for end in bound if relation == "in" else (bound,):
        require_type("bound", end, SupportsFloat, "a number")
        if math.isnan(end):
            raise ValueError("bound must be a number to compare with, got nan")
    checked_choice("expect", expect, (HELD, NOT_HELD, UNRESOLVED))
    if expect != HELD and not restriction:
        raise ValueError(f"restriction must say in words why {id} {expect!r}, got none")
    if guards and (expect != HELD or restriction):
        raise ValueError(f"guards must stand alone, got a control {id} with a restriction or expectation")
    if not source:
        raise ValueError(f"source must name who states {id}, or what its control breaks, got none")
    if exact and not (relation in ("<", "<=") and bound <= MOST_ROUNDINGS):
        raise ValueError(
            f"bound must be at most {MOST_ROUNDINGS} roundings from above, got {relation} {bound!r} for {id}"
        )
    for name, text in {"source": source, "restriction": restriction}.items():
        if SEPARATOR in text or "\n" in text:
            raise ValueError(f"{name} must be one line without {SEPARATOR!r}, got {text!r}")


def _verdict(kind: str, true: bool, expect: str, restriction: str, nothing: bool) -> str:
    """What the relation says of the claim, marked where the book says otherwise; NaN is never expected."""
    if kind == "control":
        return FAILED if true else NOT_FAILED + UNEXPECTED
    if expect == UNRESOLVED:
        return UNRESOLVED + (UNEXPECTED if nothing else "")
    verdict = (RESTRICTED if restriction and expect == HELD else HELD) if true else NOT_HELD
    return verdict + (UNEXPECTED if true != (expect == HELD) or nothing else "")


def _keep(record: Record) -> None:
    """Record; the same claim may be checked again by a cell run twice, not another one under its id."""
    old = _records.setdefault(record.id, record)
    same = ("id", "kind", "relation", "bound", "source", "note")
    if any(getattr(old, name) != getattr(record, name) for name in same):
        raise ValueError(f"id must be new, got {record.id!r}, which was recorded as {old}")
    _records[record.id] = record


class VerdictTable:
    """The checks of a chapter, the papers' claims first, controls apart; folded on the page."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def __repr__(self) -> str:
        """One line a check, fields separated by ' | '; `parse_records` reads it back."""
        return "\n".join(
            SEPARATOR.join(
                [r.id, r.kind, f"⟨{r.measured}⟩", r.relation, r.bound, r.verdict, r.source, r.note or NOTHING]
            )
            for r in self.records
        )

    def _repr_html_(self) -> str:
        """A folded table a kind, open where something came out otherwise than the book says."""
        groups = [[r for r in self.records if r.kind == kind] for kind in ("paper", "extension", "control")]
        named = zip(("Claims of the papers", "Extensions, ours", "Controls"), groups, strict=True)
        tables = "".join(_table(title, records) for title, records in named if records)
        state = " open" if any(r.unexpected for r in self.records) else ""
        return f'<details class="verdicts"{state}><summary>{tally(self.records)}</summary>{tables}</details>'


def _table(title: str, records: list[Record]) -> str:
    last = "guards" if records[0].kind == "control" else "restriction"
    head = "".join(f"<th>{name}</th>" for name in (title, "measured", "bound", "verdict", "source", last))
    rows = "".join(
        f"<tr><td><code>{html.escape(r.id)}</code></td>"
        f'<td><span class="measured">{html.escape(r.measured)}</span></td>'
        f"<td>{html.escape(f'{r.relation} {r.bound}')}</td>"
        f'<td class="{verdict_class(r.verdict)}">{r.verdict}</td>'
        f"<td>{html.escape(r.source)}</td><td>{html.escape(r.note)}</td></tr>"
        for r in records
    )
    return f'<table class="verdicts"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def verdict_class(verdict: str) -> str:
    """The style of a verdict: red where a machine disagrees with the book, else by its words."""
    if verdict.endswith(UNEXPECTED):
        return "verdict-unexpected"
    return "verdict-" + verdict.split(",")[0].replace(" ", "-")


def tally(records: Sequence[Record]) -> str:
    """Checks by kind, with what did not hold, was not resolved, or came out otherwise."""
    kinds = [record.kind for record in records]
    counts = [(kinds.count("paper"), "of the papers"), (kinds.count("extension"), "ours")]
    parts = [f"{count} {name}" for count, name in counts if count]
    controls = kinds.count("control")
    parts += [f"{controls} control{'s' * (controls != 1)}"] if controls else []
    verdicts = [record.verdict for record in records]
    parts += [f"{verdicts.count(v)} {v}" for v in (NOT_HELD, UNRESOLVED) if v in verdicts]
    odd = sum(record.unexpected for record in records)
    parts += [f"{odd} NOT AS THE BOOK SAYS"] if odd else []
    return f"{len(records)} check{'s' * (len(records) != 1)}: " + ", ".join(parts or ["none"])


def verdict_table() -> VerdictTable:
    """The checks made so far in this session: the last cell of every chapter.

    Raises:
        ValueError: a control guards a claim that was not made.

    """
    claims = {record.id for record in _records.values() if record.kind != "control"}
    for record in _records.values():
        if record.kind == "control" and record.note not in claims:
            raise ValueError(f"guards of {record.id} must name a claim of this chapter, got {record.note!r}")
    return VerdictTable(list(_records.values()))


def parse_records(text: str) -> list[Record]:
    """Read back what `VerdictTable` printed; a line that is not a record is a ValueError."""
    verdicts = {*(v + end for v in (HELD, RESTRICTED, NOT_HELD, UNRESOLVED) for end in ("", UNEXPECTED))}
    verdicts |= {FAILED, NOT_FAILED + UNEXPECTED}
    records = []
    for line in filter(None, text.splitlines()):
        fields = line.split(SEPARATOR)
        if len(fields) != 8 or fields[5] not in verdicts or not re.fullmatch("⟨.+⟩", fields[2]):
            raise ValueError(f"text must be a verdict table, got the line {line!r}")
        fields[2], fields[7] = fields[2][1:-1], "" if fields[7] == NOTHING else fields[7]
        records.append(Record(*fields))
    return records
