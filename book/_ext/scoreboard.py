"""The directive `{scoreboard}`: a table a paper, made from the claim records that the chapters store."""

from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from normcore.bookkit.scoreboard import load_scoreboard, summary


class Scoreboard(SphinxDirective):
    """Write the rows as Markdown and let the parser make them."""

    def run(self):
        """The tables."""
        root = Path(self.env.srcdir)
        scoreboard = load_scoreboard(root)
        for path in (root / "book").glob("*.ipynb"):
            self.env.note_dependency(str(path))
        lead = nodes.paragraph("", "", nodes.strong(text=summary(scoreboard)))
        return [lead, *(self._section(paper, rows) for paper, rows in scoreboard.items())]

    def _section(self, paper, rows):
        """A paper's heading and table; a heading in parsed text would land before the summary."""
        section = nodes.section("", nodes.title(text=paper), names=[nodes.fully_normalize_name(paper)])
        self.state.document.note_implicit_target(section)
        lines = [":::{list-table}", ":header-rows: 1", ":widths: 7 45 15 33", ":class: scoreboard", ""]
        lines += ["* - Claim", "  - What it says", "  - Verdict", "  - Checks"]
        for row in rows:
            lines += [f"* - **{row.id}**", f"  - {row.text}", f"  - {row.verdict}", f"  - {_checks(row)}"]
        self.state.nested_parse(
            StringList([*lines, ":::"], source="scoreboard"), self.content_offset, section
        )
        return section


def _checks(row) -> str:
    """Links to the chapters, with the checks and bounds of each."""
    if not row.checks:
        return "–"
    chapters = {}
    for stem, record in row.checks:
        chapters.setdefault(stem, []).append(
            f"`{record.id.split('/')[1]}` {record.relation} {record.bound}".replace("<", "&lt;")
            + ("" if record.verdict == "held" else f" (**{record.verdict}**)")
        )
    return " ".join(
        f"[chapter {int(stem[:2])}]({stem}.ipynb){_profile(row, stem)} "
        f"<details><summary>{len(checks)} check{'s' * (len(checks) > 1)}</summary> {', '.join(checks)} </details>"
        for stem, checks in chapters.items()
    )


def _profile(row, stem) -> str:
    """The profile in which a chapter was executed, in brackets."""
    name = row.profiles.get(stem)
    return f" ({name})" if name else ""


def setup(app):
    """Register."""
    app.add_directive("scoreboard", Scoreboard)
    return {"parallel_read_safe": True}
