"""The scoreboard counts what the chapters stored."""

import json
import sys
from pathlib import Path

from nbformat.v4 import new_code_cell, new_notebook, new_output
from sphinx.application import Sphinx
from test_bookkit_chapters import write_book

from normcore.bookkit.scoreboard import load_scoreboard, summary


def stored(text, **metadata):
    """A notebook whose last cell printed this verdict table."""
    cell = new_code_cell(
        "bookkit.verdict_table()",
        outputs=[new_output("execute_result", {"text/plain": text}, execution_count=1)],
    )
    return new_notebook(cells=[cell], metadata={"normcore": metadata} if metadata else {})


def test_rows_take_the_weakest_verdict(tmp_path):
    write_book(
        tmp_path,
        one=stored("E1/a | < | 1 | held | s\nC7/b | >= | 10 | did not reproduce | s", profile="full"),
        two=stored("C7/c | > | 3 | held | s\nC8/d | > | 3 | did not reproduce | s"),
    )
    (tmp_path / "book" / "claims.json").write_text(
        json.dumps({"paper": {"E1": "first", "C7": "second", "C8": "fourth", "I1": "third"}})
    )
    scoreboard = load_scoreboard(tmp_path)
    assert scoreboard["paper"][0].profiles == {"one": "full", "two": ""}
    assert [row.verdict for row in scoreboard["paper"]] == [
        "held",
        "held in part: 1 of 2 checks did not reproduce",
        "did not reproduce",
        "not yet tested",
    ]
    assert [stem for stem, _ in scoreboard["paper"][1].checks] == ["one", "two"]
    assert summary(scoreboard) == (
        "4 checks of 3 claims: 2 held, 2 did not reproduce; 1 of the papers' 4 claims are not yet tested."
    )


def test_the_page_opens_with_the_summary_and_shows_every_row(tmp_path, monkeypatch):
    write_book(tmp_path, **{"02_one": stored("E1/a | < | 1 | held | s", profile="ci")})
    (tmp_path / "book" / "claims.json").write_text(json.dumps({"A paper": {"E1": "first", "E2": "second"}}))
    (tmp_path / "index.md").write_text("# Board\n\n```{scoreboard}\n```\n")
    (tmp_path / "conf.py").write_text(
        "extensions = ['myst_parser', 'scoreboard']\n"
        "myst_enable_extensions = ['colon_fence']\nsuppress_warnings = ['myst']\nexclude_patterns = ['book']\n"
    )
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent.parent / "book" / "_ext"), *sys.path])
    out = tmp_path / "out"
    Sphinx(str(tmp_path), str(tmp_path), str(out), str(out), "html", status=None, warning=None).build()
    page = (out / "index.html").read_text()
    assert page.index("1 checks of 1 claims") < page.index("A paper<") < page.index("<strong>E1</strong>")
    assert "(ci)" in page
    assert "not yet tested" in page and "<summary>1 check</summary>" in page
