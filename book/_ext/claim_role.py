"""The role `{claim}`: a check by its id, as its chapter and verdict, with a link to the very cell."""

import functools
import html
from pathlib import Path

from docutils import nodes
from scoreboard import anchor

from normcore.bookkit.claims import verdict_class
from normcore.bookkit.scoreboard import load_scoreboard


@functools.cache
def checks(root: Path) -> dict:
    """Claim id -> (chapter file stem, record)."""
    board = load_scoreboard(root)
    return {
        record.id: (stem, record)
        for rows in board.values()
        for row in rows
        for stem, record in row.checks
    }


def claim_role(name, rawtext, text, lineno, inliner, options=None, content=None):
    """Raw HTML; an id that no chapter has is an error."""
    found = checks(Path(inliner.document.settings.env.srcdir)).get(text)
    if found is None:
        message = inliner.reporter.error(f"no chapter claims {text}", line=lineno)
        return [inliner.problematic(rawtext, rawtext, message)], [message]
    stem, record = found
    link = (
        f'<a href="{stem}.html#{anchor(text)}"><code>{html.escape(text)}</code></a>'
    )
    chip = f'<span class="{verdict_class(record.verdict)}">{record.verdict}</span>'
    return [
        nodes.raw("", f"{link} (chapter {int(stem[:2])}): {chip}", format="html")
    ], []


def setup(app):
    """Register."""
    app.add_role("claim", claim_role)
    app.connect("builder-inited", lambda app: checks.cache_clear())
    return {"parallel_read_safe": True}
