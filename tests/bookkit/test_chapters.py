"""Chapters: executed, stored in one form, and checked."""

import nbformat
import pytest
from book_files import BAD, GOOD, SETUP, chapter, write_book
from nbformat.v4 import new_code_cell, new_notebook

from normcore.bookkit import chapters
from normcore.bookkit.chapters import INSTALL, MISSING


def test_a_failed_claim_stops_nothing_and_is_told_with_the_machine(tmp_path, capsys):
    write_book(tmp_path, good=chapter(GOOD), bad=chapter(BAD, "print('still here')"))
    before = (tmp_path / "book" / "bad.ipynb").read_text()
    assert not chapters.execute_all(tmp_path, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "FAILED  bad" in printed and "ok      good" in printed
    told = printed[printed.index("Not as the book says, on ") :]
    assert "torch " in told and "1 thread" in told
    assert "bad  E1/x: 3 < 2  did not hold (unexpected)" in told and "good" not in told
    stored = nbformat.read(tmp_path / "out" / "book" / "bad.ipynb", as_version=4)
    assert "still here" in str(stored.cells[3].outputs) and "DOES NOT HOLD HERE" in str(
        stored.cells[2].outputs
    )
    records = chapters.notebook_records(tmp_path / "out" / "book" / "good.ipynb")
    assert [record.id for record in records] == ["E1/x"]
    assert (tmp_path / "book" / "bad.ipynb").read_text() == before  # the tree stays as it is


def test_an_error_names_chapter_and_cell_and_the_page_shows_how_far_it_came(tmp_path, capsys):
    write_book(tmp_path, broken=chapter("print('before')", "1 / 0", "print('after')"), good=chapter(GOOD))
    assert not chapters.execute_all(tmp_path, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "broken  cell 3: ZeroDivisionError: division by zero" in printed and "ok      good" in printed
    cells = nbformat.read(tmp_path / "out" / "book" / "broken.ipynb", as_version=4).cells
    assert "before" in str(cells[2].outputs) and "ZeroDivisionError" in str(cells[3].outputs)
    assert cells[4].outputs == []
    assert chapters.notebook_records(tmp_path / "out" / "book" / "broken.ipynb") == []


def test_storing_keeps_what_was_stored_where_a_chapter_disagrees(tmp_path):
    write_book(tmp_path, good=chapter(GOOD), bad=chapter(BAD))
    before = (tmp_path / "book" / "bad.ipynb").read_text()
    assert not chapters.execute_all(tmp_path, tmp_path)
    assert (tmp_path / "book" / "bad.ipynb").read_text() == before
    assert chapters.notebook_records(tmp_path / "book" / "good.ipynb")[0].verdict == "held"


def test_a_kernel_that_dies_fails_its_chapter_alone(tmp_path, capsys):
    write_book(tmp_path, dead=chapter("1", "import os; os._exit(1)"), good=chapter(GOOD))
    assert not chapters.execute_all(tmp_path, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "FAILED  dead" in printed and "DeadKernelError" in printed and "ok      good" in printed


def test_a_cell_may_take_its_time_unless_a_limit_is_set(monkeypatch, tmp_path):
    monkeypatch.delenv("NORMCORE_CELL_TIMEOUT", raising=False)
    assert chapters.cell_timeout() is None
    monkeypatch.setenv("NORMCORE_CELL_TIMEOUT", "2")
    notebook = new_notebook(cells=[new_code_cell("1"), new_code_cell("import time; time.sleep(600)")])
    _, error = chapters.execute_notebook(notebook, tmp_path)
    assert error.startswith("cell 2: CellTimeoutError")
    for wrong in ("0", "-1", "soon"):
        monkeypatch.setenv("NORMCORE_CELL_TIMEOUT", wrong)
        with pytest.raises(ValueError, match="NORMCORE_CELL_TIMEOUT must be an integer >= 1"):
            chapters.cell_timeout()


def test_some_chapters_can_be_named(tmp_path, capsys):
    write_book(tmp_path, **{"01_one": chapter(GOOD), "02_two": chapter(GOOD)})
    assert chapters.execute_all(tmp_path, tmp_path / "out", ["02"])
    printed = capsys.readouterr().out
    assert "02_two" in printed and "01_one" not in printed
    assert chapters.notebook_profile(tmp_path / "out" / "book" / "02_two.ipynb") == "ci"


THERE = INSTALL.format(url="https://a.example/b")


@pytest.mark.parametrize(("url", "lines"), [("", MISSING), ("https://a.example/b", THERE)])
def test_the_address_of_the_repository_is_set_in_one_place(tmp_path, url, lines):
    write_book(tmp_path, url=url, one=chapter(GOOD))
    assert chapters.first_lines(tmp_path) == lines
    assert chapters.execute_all(tmp_path, tmp_path)
    cell = nbformat.read(tmp_path / "book" / "one.ipynb", as_version=4).cells[1]
    assert cell.source.startswith(lines)
    other = chapters.with_first_lines(chapter(GOOD), THERE)
    assert other.cells[1].source.startswith(THERE)
    assert chapters.with_first_lines(other, MISSING).cells[1].source == SETUP


def test_check_names_the_chapter_and_its_fault(tmp_path, monkeypatch, capsys):
    write_book(tmp_path, one=chapter("plot();"))
    monkeypatch.chdir(tmp_path)
    assert chapters.main(["check"]) == 1
    printed = capsys.readouterr().out
    assert "one: cell 2: ends in a semicolon" in printed and "one: not in canonical form" in printed
    notebook = chapters.canonical(chapter("1"))
    (tmp_path / "book" / "one.ipynb").write_text(nbformat.writes(notebook) + "\n")
    assert chapters.main(["check"]) == 0 and capsys.readouterr().out == ""


def test_canonical_form_is_a_fixed_point():
    notebook = chapter("1 + 1")
    notebook.metadata["signature"] = "x"
    notebook.cells[1].metadata.update(collapsed=True, tags=["hide-input"])
    once = chapters.canonical(notebook)
    assert once == chapters.canonical(once)
    assert [cell["id"] for cell in once.cells] == ["cell-000", "cell-001", "cell-002", "cell-003"]
    assert once.cells[1].metadata == {"tags": ["hide-input"]} and set(once.metadata) == {
        "kernelspec",
        "language_info",
    }


def test_unknown_command_prints_the_usage(capsys):
    assert chapters.main(["dance"]) == 2
    assert "execute DEST" in capsys.readouterr().out
