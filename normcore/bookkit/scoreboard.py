"""The scoreboard: every claim of the papers, and what the chapters' stored records say of it.

python -m normcore.bookkit.scoreboard ROOT    prints the summary of the book below ROOT
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from normcore.bookkit.chapters import chapter_paths, notebook_profile, notebook_records
from normcore.bookkit.claims import VERDICTS, Record

NOT_TESTED = "not yet tested"


@dataclass(frozen=True)
class Row:
    """A claim of a paper with the checks made of it, as (chapter file stem, record).

    profiles: chapter file stem -> profile in which its stored outputs were made.
    """

    id: str
    text: str
    checks: tuple[tuple[str, Record], ...]
    profiles: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The weakest verdict of its checks; where some did not reproduce and others held, how many."""
        found = [record.verdict for _, record in self.checks]
        failed = found.count(VERDICTS[-1])
        if 0 < failed < len(found):
            return f"held in part: {failed} of {len(found)} checks did not reproduce"
        return max(found, key=VERDICTS.index) if found else NOT_TESTED


def load_scoreboard(root: Path) -> dict[str, list[Row]]:
    """The rows by paper, from book/claims.json and the notebooks' stored verdict tables."""
    checks: dict[str, list[tuple[str, Record]]] = {}
    profiles = {path.stem: notebook_profile(path) for path in chapter_paths(root)}
    for path in chapter_paths(root):
        for record in notebook_records(path):
            checks.setdefault(record.id.split("/")[0], []).append((path.stem, record))
    papers = json.loads((root / "book" / "claims.json").read_text(encoding="utf-8"))
    return {
        paper: [Row(id, text, tuple(checks.get(id, ())), profiles) for id, text in rows.items()]
        for paper, rows in papers.items()
    }


def summary(scoreboard: dict[str, list[Row]]) -> str:
    """One sentence: checks made, held, not reproduced, and rows still to come."""
    rows = [row for paper in scoreboard.values() for row in paper]
    verdicts = [record.verdict for row in rows for _, record in row.checks]
    failed = verdicts.count("did not reproduce")
    waiting = sum(row.verdict == NOT_TESTED for row in rows)
    return (
        f"{len(verdicts)} checks of {len(rows) - waiting} claims: {len(verdicts) - failed} held, {failed} did not reproduce; "
        f"{waiting} of the papers' {len(rows)} claims are {NOT_TESTED}."
    )


if __name__ == "__main__":
    print("Scoreboard:", summary(load_scoreboard(Path(sys.argv[1]))))
