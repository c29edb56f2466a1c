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
        lines = [f"**{summary(scoreboard)}**", ""]
        for paper, rows in scoreboard.items():
            lines += [
                f"## {paper}",
                "",
                ":::{list-table}",
                ":header-rows: 1",
                ":widths: 7 48 27 18",
                ":class: scoreboard",
                "",
            ]
            lines += ["* - Claim", "  - What it says", "  - Checks", "  - Verdict"]
            for row in rows:
                lines += [f"* - **{row.id}**", f"  - {row.text}", f"  - {_checks(row)}", f"  - {row.verdict}"]
            lines += [":::", ""]
        node = nodes.Element()
        self.state.nested_parse(
            StringList(lines, source="scoreboard"), self.content_offset, node, match_titles=True
        )
        return node.children


def _checks(row) -> str:
    """Links to the chapters, with the checks and bounds of each."""
    if not row.checks:
        return "–"
    chapters = {}
    for stem, record in row.checks:
        chapters.setdefault(stem, []).append(
            f"`{record.id.split('/')[1]}` {record.relation} {record.bound}".replace("<", "&lt;")
        )
    return " ".join(
        f"[chapter {int(stem[:2])}]({stem}.ipynb){_profile(row, stem)} "
        f"<details><summary>{len(checks)} checks</summary> {', '.join(checks)} </details>"
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
