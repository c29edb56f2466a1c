"""The scoreboard judges a row by the paper's checks alone, and says its restrictions."""

import subprocess
import sys
from pathlib import Path

import pytest
from book_files import write_book
from nbformat.v4 import new_code_cell, new_notebook, new_output
from sphinx.application import Sphinx

from normcore.bookkit.claims import Record
from normcore.bookkit.scoreboard import Row, load_scoreboard, summary

EXT = Path(__file__).parents[2] / "book" / "_ext"


def line(id, verdict="held", kind="paper", note="–", measured="0.5 ± 0.1 (n = 3)"):
    return f"{id} | {kind} | ⟨{measured}⟩ | < | 1 | {verdict} | s | {note}"


def stored(*lines, codes=(), **metadata):
    """A notebook whose last cell printed this verdict table."""
    last = new_code_cell(
        "bookkit.verdict_table()",
        outputs=[new_output("execute_result", {"text/plain": "\n".join(lines)}, execution_count=1)],
    )
    cells = [*(new_code_cell(code) for code in codes), last]
    return new_notebook(cells=cells, metadata={"normcore": metadata} if metadata else {})


def row(*checks, id="E1"):
    """A row of these (verdict, kind, note)."""
    made = [
        ("one", Record(f"{id}/{i}", kind, "1", "<", "2", verdict, "s", note))
        for i, (verdict, kind, note) in enumerate(checks)
    ]
    return Row(id, "text", tuple(made))


@pytest.mark.parametrize(
    ("checks", "verdict", "restrictions"),
    [
        ([("held", "paper", "")], "held", []),
        ([("held", "paper", ""), ("held with a restriction", "paper", "on digits")],) * 1
        + ("held with a restriction", ["on digits"]),
        (
            [("held", "paper", ""), ("did not hold", "paper", "misses by 40 %")],
            "held with a restriction",
            ["did not hold: misses by 40 %"],
        ),
        ([("did not hold", "paper", "a"), ("not resolved", "paper", "b")], "did not hold", None),
        ([("not resolved", "paper", "needs more")], "not resolved", ["not resolved: needs more"]),
        ([("failed, as it must", "control", "E1/0")], "not tested", []),
        ([("held", "extension", "")], "not tested", []),
        ([("held", "paper", ""), ("did not fail (unexpected)", "control", "E1/0")], "held", []),
        ([("did not hold (unexpected)", "paper", "")], "did not hold", None),
    ],
)
def test_a_row_is_judged_by_the_papers_checks_alone(checks, verdict, restrictions):
    found = row(*checks)
    assert found.verdict == verdict
    if restrictions is not None:
        assert found.restrictions == restrictions


def test_rows_of_extensions_are_judged_by_the_extensions():
    assert row(("held", "extension", ""), id="X1").verdict == "held"


def book(tmp_path):
    write_book(
        tmp_path,
        **{
            "02_one": stored(
                line("E1/a"),
                line("E1/b-x", kind="extension"),
                line("E1/c", "failed, as it must", "control", "E1/a"),
                codes=['claim("E1/a", 1, "<", 2)', 'claim(f"E1/{name}", 1, "<", 2)'],
                profile="full",
            ),
            "03_two": stored(
                line("C8/a", "not resolved", note="needs <nets> that fit"), line("X4/a", kind="extension")
            ),
        },
    )


def test_rows_know_chapter_and_profile_and_the_summary_counts(tmp_path):
    book(tmp_path)
    papers = load_scoreboard(tmp_path)
    rows = {row.id: row for paper in papers.values() for row in paper}
    assert len(rows) == 37 + sum(id.startswith("X") for id in rows)
    assert rows["E1"].profiles["02_one"] == "full" and rows["E1"].checks[0][0] == "02_one"
    assert summary(papers) == (
        "Of the papers' 37 claims: 1 held, 1 not resolved, 35 not tested. "
        "5 checks: 2 of the papers, 2 ours, 1 control, 1 not resolved."
    )


def test_the_page_links_each_check_to_its_cell(tmp_path, monkeypatch):
    book(tmp_path)
    (tmp_path / "index.md").write_text(
        "# Board\n\n```{scoreboard}\n```\n\n```{toctree}\n02_one\nfront\n```\n"
    )
    (tmp_path / "front.md").write_text("# Front\n\n```{score}\n```\n")
    for name in ("02_one", "03_two"):
        (tmp_path / f"{name}.ipynb").write_text((tmp_path / "book" / f"{name}.ipynb").read_text())
    (tmp_path / "_toc.yml").write_text("file: book/02_one\nfile: 02_one\nfile: book/03_two")
    (tmp_path / "conf.py").write_text(
        "extensions = ['myst_nb', 'scoreboard']\nnb_execution_mode = 'off'\n"
        "suppress_warnings = ['myst']\nexclude_patterns = ['book', '03*']\n"
    )
    monkeypatch.setattr(sys, "path", [str(EXT), *sys.path])
    out = tmp_path / "out"
    Sphinx(str(tmp_path), str(tmp_path), str(out), str(out), "html", status=None, warning=None).build()
    page = (out / "index.html").read_text()
    assert page.count('class="square') == len(
        [r for rows in load_scoreboard(tmp_path).values() for r in rows]
    )
    assert '<a href="02_one.html#claim-e1-a"><code>E1/a</code></a> 0.5 ± 0.1 (n = 3) &lt; 1' in page
    assert "2 checks of the paper" in page or "1 check of the paper" in page
    assert "not resolved: needs &lt;nets&gt; that fit" in page and "(chapter 2, full)" in page
    front = (out / "front.html").read_text()
    assert summary(load_scoreboard(tmp_path)).replace("'", "’") in front
    assert '<a class="square verdict-held" href="scoreboard.html#row-E1"' in front and 'id="row-' not in front
    assert '<a class="square verdict-held" href="#row-E1"' in page
    chapter = (out / "02_one.html").read_text()
    assert chapter.count('id="claim-e1-') == 3


def test_the_filter_runs_and_hides_rows(tmp_path):
    """The script of the page, on a page made of plain objects."""
    if subprocess.run(["node", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("node is not installed")
    script = (EXT.parent / "_static" / "scoreboard.js").read_text()
    test = """
const listeners = {};
const menu = (filter) => ({dataset: {filter}, value: "", addEventListener: (_, f) => (listeners[filter] = f)});
const menus = [menu("row"), menu("verdict")], status = {textContent: ""};
const rows = [["row-E1", "held"], ["row-C8", "not resolved"]].map(([id, verdict]) => ({id, dataset: {verdict}, hidden: false}));
const board = {hidden: true, querySelectorAll: () => menus, querySelector: () => status};
const squares = {};
globalThis.document = {
  addEventListener: (_, f) => f(),
  querySelector: (s) => s === ".board-filter" ? board : (squares[s] ??= {classList: {toggle: (c, on) => (squares[s].faded = on)}}),
  querySelectorAll: () => rows,
};
SCRIPT
const assert = require("assert");
assert(!board.hidden && status.textContent === "2 of 2 rows");
menus[0].value = "C"; listeners.row();
assert(rows[0].hidden && !rows[1].hidden && squares['.square[href="#row-E1"]'].faded);
menus[1].value = "held"; listeners.verdict();
assert(rows[0].hidden && rows[1].hidden);
menus[0].value = ""; listeners.row();
assert(!rows[0].hidden && status.textContent === "1 of 2 rows");
""".replace("SCRIPT", script)
    result = subprocess.run(["node", "-e", test], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
