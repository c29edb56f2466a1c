"""The scoreboard: every claim of the papers, and what the chapters' stored records say of it.

python -m normcore.bookkit.scoreboard ROOT    prints the summary of the book below ROOT
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from normcore.bookkit.chapters import chapter_paths, notebook_profile, notebook_records
from normcore.bookkit.claims import HELD, NOT_HELD, PAPERS, RESTRICTED, UNEXPECTED, UNRESOLVED, Record, tally

NOT_TESTED = "not tested"
VERDICTS = (HELD, RESTRICTED, NOT_HELD, UNRESOLVED, NOT_TESTED)


@dataclass(frozen=True)
class Row:
    """A row of the scoreboard with the checks made of it, as (chapter file stem, record).

    profiles: chapter file stem -> profile in which its stored outputs were made.
    """

    id: str
    text: str
    checks: tuple[tuple[str, Record], ...]
    profiles: Mapping[str, str] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[tuple[str, Record]]:
        """The checks of a kind."""
        return [(stem, record) for stem, record in self.checks if record.kind == kind]

    @property
    def verdict(self) -> str:
        """From the paper's checks alone (for a row X, from the extensions): one of VERDICTS.

        Where some held and others did not, or could not be resolved, the claim held with a restriction, which says
        where.
        """
        found = {verdict for verdict, _ in self._judged()}
        if found & {HELD, RESTRICTED}:
            return HELD if found == {HELD} else RESTRICTED
        return NOT_HELD if NOT_HELD in found else UNRESOLVED if found else NOT_TESTED

    @property
    def restrictions(self) -> list[str]:
        """What a row's verdict leaves out, in words, each once."""
        notes = []
        for verdict, record in self._judged():
            lead = f"{verdict}: " if verdict in (NOT_HELD, UNRESOLVED) else ""
            notes += [lead + (record.note or record.id)] if verdict != HELD else []
        return list(dict.fromkeys(notes))

    def _judged(self) -> list[tuple[str, Record]]:
        """The checks that count, each behind its verdict without the mark of a machine that disagrees."""
        checks = self.of_kind("extension" if self.id.startswith("X") else "paper")
        return [(record.verdict.removesuffix(UNEXPECTED), record) for _, record in checks]


def load_scoreboard(root: Path) -> dict[str, list[Row]]:
    """The rows by paper, from the notebooks' stored verdict tables."""
    checks: dict[str, list[tuple[str, Record]]] = {}
    profiles = {path.stem: notebook_profile(path) for path in chapter_paths(root)}
    for path in chapter_paths(root):
        for record in notebook_records(path):
            checks.setdefault(record.row, []).append((path.stem, record))
    return {
        paper: [Row(id, text, tuple(checks.get(id, ())), profiles) for id, text in rows.items()]
        for paper, rows in PAPERS.items()
    }


def summary(scoreboard: Mapping[str, list[Row]]) -> str:
    """Two sentences: verdicts of the papers' rows, and checks by kind."""
    rows = [row for paper in scoreboard.values() for row in paper]
    claims = [row for row in rows if not row.id.startswith("X")]
    verdicts = [row.verdict for row in claims]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in VERDICTS if v in verdicts)
    checks = tally([record for row in rows for _, record in row.checks])
    return f"Of the papers' {len(claims)} claims: {counts}. {checks}."


if __name__ == "__main__":
    print("Scoreboard:", summary(load_scoreboard(Path(sys.argv[1]))))
