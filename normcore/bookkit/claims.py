"""Claims:

A number, a relation, a bound. A claim that does not hold stops the chapter; one that holds is recorded for
the scoreboard.
"""

import html
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, SupportsFloat

RELATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "in": lambda value, bound: bound[0] <= value <= bound[1],
}
SEPARATOR = " | "
VERDICTS = ("held", "held with a restriction", "did not reproduce")
ROWS = {*(f"E{i}" for i in range(1, 16)), *(f"I{i}" for i in range(1, 13)), *(f"C{i}" for i in range(1, 11))}


class ClaimError(AssertionError):
    """A claim that does not hold."""


@dataclass(frozen=True)
class Record:
    """A checked claim, without the measured value, so that it is the same on every machine."""

    id: str
    relation: str
    bound: str
    verdict: str
    source: str


_records: dict[str, Record] = {}


def claim(
    id: str,
    value: SupportsFloat,
    relation: str,
    bound: Any,
    *,
    source: str = "",
    restriction: str = "",
    n: int | None = None,
    se: float | None = None,
) -> None:
    """Check `value relation bound`, and record that it holds.

    Args:
        id: a row of the scoreboard and a finer name: "E2/direction".
        value: the measured number.
        relation: "<", "<=", ">", ">=", "==" or "in" (a closed interval).
        bound: a number, or a pair for "in". It is what the prose may say.
        source: paper and theorem, such as "Li & Arora 2020, Thm 2.1".
        restriction: a sentence where the claim holds only in a restricted form.
        n: number of independent runs behind a statistical value.
        se: its standard error.

    Raises:
        ClaimError: it does not hold; NaN never does. The message has both numbers.
        ValueError: the id or relation is unknown, or the id was recorded with other content.

    Example:
        >>> claim("E2/example", 1e-12, "<", 1e-10)
        >>> claim("E2/example-fails", float("nan"), "<", 1.0)
        Traceback (most recent call last):
        ...
        normcore.bookkit.claims.ClaimError: claim E2/example-fails does not hold: nan < 1.0

    """
    number = _checked(id, value, relation)
    if not _holds(number, relation, bound):
        spread = "".join(
            [
                f", n={n}" if n is not None else "",
                f", se={se:.3g}" if se is not None else "",
                f" ({source})" if source else "",
            ]
        )
        raise ClaimError(f"claim {id} does not hold: {number:.6g} {relation} {bound}{spread}")
    verdict = "held with a restriction" if restriction else "held"
    _record(Record(id, relation, _text(bound), verdict, "; ".join(filter(None, [source, restriction]))))


def not_reproduced(id: str, value: SupportsFloat, relation: str, bound: Any, *, source: str = "") -> None:
    """Record that a paper's relation does not hold here: a result too.

    Raises:
        ClaimError: it holds after all, or the value is NaN, which is no measurement.

    Example:
        >>> not_reproduced("C7/twelve", 4.0, ">=", 10.0, source="an example")

    """
    number = _checked(id, value, relation)
    if math.isnan(number):
        raise ClaimError(f"claim {id} has no measured value: nan {relation} {bound}")
    if _holds(number, relation, bound):
        raise ClaimError(
            f"claim {id} was expected not to reproduce, but holds: {number:.6g} {relation} {bound}"
        )
    _record(Record(id, relation, _text(bound), "did not reproduce", source))


def _checked(id: str, value: SupportsFloat, relation: str) -> float:
    """The value as a float, after checking id and relation."""
    if not re.fullmatch(r"[A-Z]\d+/[a-z0-9-]+", id) or id.split("/")[0] not in ROWS:
        raise ValueError(f"id must be a scoreboard row and a name, like 'E2/direction', got {id!r}")
    if relation not in RELATIONS:
        raise ValueError(f"relation must be one of {list(RELATIONS)}, got {relation!r}")
    return float(value)


def _holds(number: float, relation: str, bound: Any) -> bool:
    """Whether the relation holds; never for NaN."""
    return not math.isnan(number) and bool(RELATIONS[relation](number, bound))


def _text(bound: Any) -> str:
    """A bound as the scoreboard prints it."""
    return f"[{bound[0]:g}, {bound[1]:g}]" if isinstance(bound, tuple | list) else f"{float(bound):g}"


def _record(record: Record) -> None:
    """Keep a record; the same claim may be checked again, not another one under its id."""
    if SEPARATOR in record.source or "\n" in record.source:
        raise ValueError(f"source must be one line without {SEPARATOR!r}, got {record.source!r}")
    if _records.setdefault(record.id, record) != record:
        raise ValueError(f"id must be new, got {record.id!r}, which was recorded as {_records[record.id]}")


class VerdictTable:
    """The claims of a chapter:

    Ids, relations, bounds and verdicts only, so that its output is the same on every machine.
    """

    def __init__(self, records: list[Record]) -> None:
        """Hold the records."""
        self.records = records

    def __repr__(self) -> str:
        """One line a claim, fields separated by ' | '; `bookkit.scoreboard` reads it back."""
        return "\n".join(
            SEPARATOR.join([r.id, r.relation, r.bound, r.verdict, r.source]) for r in self.records
        )

    def _repr_html_(self) -> str:
        """A table."""
        head = "<tr><th>claim</th><th>bound</th><th>verdict</th><th>source</th></tr>"
        rows = "".join(
            f"<tr><td><code>{html.escape(r.id)}</code></td><td>{html.escape(f'{r.relation} {r.bound}')}</td>"
            f'<td class="verdict-{r.verdict.split()[0]}">{r.verdict}</td><td>{html.escape(r.source)}</td></tr>'
            for r in self.records
        )
        return f'<table class="verdicts"><thead>{head}</thead><tbody>{rows}</tbody></table>'


def verdict_table() -> VerdictTable:
    """The claims checked so far in this session: the last cell of every chapter."""
    return VerdictTable(list(_records.values()))


def clear() -> None:
    """Forget all records (a fresh kernel does)."""
    _records.clear()


def parse_records(text: str) -> list[Record]:
    """Read back what `VerdictTable` printed.

    Raises:
        ValueError: a line is not a record.

    """
    records = []
    for line in filter(None, text.splitlines()):
        fields = line.split(SEPARATOR)
        if len(fields) != 5 or fields[3] not in VERDICTS:
            raise ValueError(f"text must be a verdict table, got the line {line!r}")
        records.append(Record(*fields))
    return records
