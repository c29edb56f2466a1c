"""The directives `{scoreboard}` and `{score}`, and an anchor at every cell that makes a claim, so that the board links to it."""

import html
import re
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from normcore.bookkit.chapters import chapter_paths, notebook_records
from normcore.bookkit.claims import verdict_class
from normcore.bookkit.scoreboard import VERDICTS, load_scoreboard, summary


def anchor(id: str) -> str:
    """The HTML id of the cell that makes a claim."""
    return "claim-" + id.lower().replace("/", "-")


class Score(SphinxDirective):
    """The summary and the map of all rows, whose squares lead to the scoreboard."""

    page = "scoreboard.html"

    def run(self):
        """A paragraph and raw HTML."""
        root = Path(self.env.srcdir)
        self.scoreboard = load_scoreboard(root)
        for path in (root / "book").glob("*.ipynb"):
            self.env.note_dependency(str(path))
        lead = nodes.strong(text=summary(self.scoreboard))
        return [
            nodes.paragraph("", "", lead),
            _raw(_map(self.scoreboard, self.page)),
        ]


class Scoreboard(Score):
    """The same with the filter, and a section a paper."""

    page = ""

    def run(self):
        """Raw HTML around parsed text, so that formulas in rows are formulas."""
        head = super().run()
        board = self.scoreboard.items()
        sections = [self._section(paper, rows) for paper, rows in board]
        return [*head, _raw(_filter(self.scoreboard)), *sections]

    def _section(self, paper, rows):
        """A paper's heading and rows."""
        section = nodes.section(
            "", nodes.title(text=paper), names=[nodes.fully_normalize_name(paper)]
        )
        self.state.document.note_implicit_target(section)
        for row in rows:
            kind = verdict_class(row.verdict)
            head = f'<div class="score {kind}" id="row-{row.id}" data-row="{row.id}" data-verdict="{row.verdict}">'
            section += _raw(
                f'{head}<div class="score-head"><b>{row.id}</b> <span class="chip">{row.verdict}</span></div>'
            )
            text, _ = self.parse_inline(row.text)
            section += nodes.paragraph("", "", *text)
            section += _raw(_words(row) + _checks(row) + "</div>")
        return section


def _raw(text):
    """HTML as it is."""
    return nodes.raw("", text, format="html")


def _map(scoreboard, page) -> str:
    """A square a row, coloured by its verdict."""
    lines = []
    for paper, rows in scoreboard.items():
        squares = "".join(
            f'<a class="square {verdict_class(row.verdict)}" href="{page}#row-{row.id}" '
            f'title="{row.id}: {row.verdict}" data-verdict="{row.verdict}">{row.id}</a>'
            for row in rows
        )
        lines.append(
            f'<div class="board-row"><span>{html.escape(paper)}</span>{squares}</div>'
        )
    return f'<div class="board">{"".join(lines)}</div>'


def _filter(scoreboard) -> str:
    """Two menus; `scoreboard.js` obeys them."""
    papers = "".join(
        f'<option value="{rows[0].id[0]}">{html.escape(p)}</option>'
        for p, rows in scoreboard.items()
    )
    verdicts = "".join(f"<option>{verdict}</option>" for verdict in VERDICTS)
    return (
        '<div class="board-filter" hidden><label>Paper <select data-filter="row"><option value="">all</option>'
        f'{papers}</select></label> <label>Verdict <select data-filter="verdict"><option value="">all</option>'
        f'{verdicts}</select></label> <span role="status"></span></div>'
    )


def _words(row) -> str:
    """The restriction of a row."""
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in row.restrictions)
    return f'<ul class="restrictions">{notes}</ul>' if notes else ""


def _checks(row) -> str:
    """The checks by kind, folded, each with what was measured and a link to its cell."""
    names = {
        "paper": "check{s} of the paper",
        "extension": "check{s} of ours",
        "control": "control{s}",
    }
    parts = []
    for kind, name in names.items():
        found = row.of_kind(kind)
        if found:
            label = f"{len(found)} " + name.format(s="s" * (len(found) > 1))
            items = "".join(
                _check(stem, record, row.profiles.get(stem))
                for stem, record in found
            )
            parts.append(
                f"<details><summary>{label}</summary><ul>{items}</ul></details>"
            )
    return "".join(parts)


def _check(stem, record, profile) -> str:
    """One check: a link to its cell, value, relation, bound, verdict."""
    where = f"chapter {int(stem[:2])}" + (f", {profile}" if profile else "")
    verdict = (
        ""
        if record.verdict in ("held", "failed, as it must")
        else f" <b>{record.verdict}</b>"
    )
    return (
        f'<li><a href="{stem}.html#{anchor(record.id)}"><code>{record.id}</code></a> '
        f"{html.escape(record.measured)} {html.escape(record.relation)} {html.escape(record.bound)} "
        f"<small>({where})</small>{verdict}</li>"
    )


def add_anchors(app, doctree) -> None:
    """Put an anchor before each code cell whose source makes a claim of the chapter."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    if path not in chapter_paths(Path(app.srcdir)):
        return
    cells = [
        node
        for node in doctree.findall(nodes.container)
        if "cell" in node["classes"]
    ]
    sources = [
        "\n".join(block.astext() for block in cell.findall(nodes.literal_block))
        for cell in cells
    ]
    ids = [record.id for record in notebook_records(path)]
    made = makers(sources, ids)
    for i, cell in enumerate(cells):
        own = [id for id, maker in zip(ids, made, strict=True) if maker == i]
        marks = "".join(
            f'<span class="claim-anchor" id="{anchor(id)}"></span>' for id in own
        )
        if marks:
            cell.parent.insert(cell.parent.index(cell), _raw(marks))


def makers(sources: list[str], ids: list[str]) -> list[int]:
    """For each claim, in the order in which they were made, the cell that makes it.

    It names the claim in full, or by a pattern such as f"{row}/{name}-lags"; else a
    function of an earlier cell makes it beside the claim before.
    """
    found, at = [], 0
    for id in ids:
        later = range(at, len(sources))
        named = [i for i in later if f'"{id}"' in sources[i]]
        at = (named or [i for i in later if _forms(sources[i], id)] or [at])[0]
        found.append(at)
    return found


def _forms(source: str, id: str) -> bool:
    """Whether a formatted string of the source can be this id."""
    return any(
        re.fullmatch("[A-Za-z0-9/-]*".join(re.split(r"\\\{.*?\\\}", text)), id)
        for text in map(re.escape, re.findall(r'f"([^"\n]*)"', source))
        if "{" in text
    )


def link_verdicts(app, doctree) -> None:
    """In a chapter's verdict table, link the row of each check to the scoreboard and its name to its cell."""
    for node in list(doctree.findall(nodes.raw)):
        text = node.astext()
        if '<table class="verdicts">' in text:
            node.replace_self(_raw(CHECK.sub(_linked, text)))


CHECK = re.compile(r"<td><code>([A-Z]\d+)/([a-z0-9-]+)</code></td>")


def _linked(found) -> str:
    """A check with its two links."""
    row, name = found.groups()
    return (
        f'<td><code><a href="scoreboard.html#row-{row}">{row}</a>/'
        f'<a href="#{anchor(f"{row}/{name}")}">{name}</a></code></td>'
    )


def setup(app):
    """Register."""
    app.add_directive("score", Score)
    app.add_directive("scoreboard", Scoreboard)
    app.connect("doctree-read", add_anchors)
    app.connect("doctree-read", link_verdicts)
    return {"parallel_read_safe": True}
