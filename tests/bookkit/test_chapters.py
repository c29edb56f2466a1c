"""Chapters: executed, stored in one form, and checked."""

import contextlib
import io
import re

import nbformat
import pytest
from book_files import BAD, GOOD, SETUP, bare, chapter, write_book

from normcore.bookkit import chapters
from normcore.bookkit.chapters import INSTALL, MISSING


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Four of a book's five chapters, executed into a folder: the book, and what was printed; two import nothing."""
    root = tmp_path_factory.mktemp("executed")
    broken = bare("print('before')", "1 / 0", "print('after')")
    dead = bare("1", "import os; os._exit(1)")
    bad = chapter(BAD, "print('still here')")
    write_book(
        root, **{"01_good": chapter(GOOD), "02_bad": bad, "03_broken": broken, "04_dead": dead, "05": bare()}
    )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert not chapters.execute_all(root, root / "out", ["01", "02", "03", "04"])
    return root, printed.getvalue()


def test_a_failed_claim_stops_nothing_and_is_told_with_the_machine(executed):
    root, printed = executed
    assert "FAILED  02_bad" in printed and "ok      01_good" in printed
    told = printed[printed.index("Not as the book says, on ") :]
    assert "torch " in told and "1 thread" in told
    assert "02_bad  E1/x: 3 < 2  did not hold (unexpected)" in told and "good" not in told
    stored = nbformat.read(root / "out" / "book" / "02_bad.ipynb", as_version=4)
    assert "still here" in str(stored.cells[3].outputs) and "DOES NOT HOLD HERE" in str(
        stored.cells[2].outputs
    )
    good = root / "out" / "book" / "01_good.ipynb"
    assert [record.id for record in chapters.notebook_records(good)] == ["E1/x"]
    assert chapters.notebook_profile(good) == "ci"
    for path in chapters.chapter_paths(root):  # the tree stays as it is
        assert all(not cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells)


def test_an_error_names_chapter_and_cell_and_the_page_shows_how_far_it_came(executed):
    root, printed = executed
    assert "FAILED  03_broken" in printed
    assert "03_broken  cell 2: ZeroDivisionError: division by zero" in printed
    cells = nbformat.read(root / "out" / "book" / "03_broken.ipynb", as_version=4).cells
    assert "before" in str(cells[1].outputs) and "ZeroDivisionError" in str(cells[2].outputs)
    assert cells[3].outputs == []
    assert chapters.notebook_records(root / "out" / "book" / "03_broken.ipynb") == []


def test_a_kernel_that_dies_fails_its_chapter_alone(executed):
    _, printed = executed
    # the death may outrun the word that its cell, the second, has begun
    assert "FAILED  04_dead" in printed and re.search("04_dead  cell [12]: DeadKernelError", printed)


def test_some_chapters_can_be_named(executed):
    root, printed = executed
    assert "05" not in re.findall(r"^\w+ +(\d\d)", printed, re.MULTILINE) != []
    assert not (root / "out" / "book" / "05.ipynb").exists()
    order = [path.stem for path in chapters.named(root, ["03", "0"])]
    assert order == ["03_broken", "01_good", "02_bad", "04_dead", "05"]
    with pytest.raises(ValueError, match=r"names: no chapter of \['01_good', .*\] begins with '8'"):
        chapters.named(root, ["03", "8"])


THERE = INSTALL.format(url="https://a.example/b")


def test_storing_keeps_what_was_stored_where_a_chapter_disagrees(tmp_path):
    write_book(tmp_path, url="https://a.example/b", good=chapter(GOOD), bad=chapter(BAD))
    before = (tmp_path / "book" / "bad.ipynb").read_text()
    assert not chapters.execute_all(tmp_path, tmp_path)
    assert (tmp_path / "book" / "bad.ipynb").read_text() == before
    good = tmp_path / "book" / "good.ipynb"
    assert chapters.notebook_records(good)[0].verdict == "held"
    assert nbformat.read(good, as_version=4).cells[1].source.startswith(THERE)


def test_the_address_of_the_repository_is_set_in_one_place(tmp_path, executed):
    root, _ = executed
    write_book(tmp_path, url="https://a.example/b")
    assert (chapters.first_lines(root), chapters.first_lines(tmp_path)) == (MISSING, THERE)
    cell = nbformat.read(root / "out" / "book" / "01_good.ipynb", as_version=4).cells[1]
    assert cell.source.startswith(MISSING)
    other = chapters.with_first_lines(chapter(GOOD), THERE)
    assert other.cells[1].source.startswith(THERE)
    assert chapters.with_first_lines(other, MISSING).cells[1].source == SETUP


def test_a_cell_may_take_its_time_unless_a_limit_is_set(monkeypatch, tmp_path):
    monkeypatch.delenv("NORMCORE_CELL_TIMEOUT", raising=False)
    assert chapters.cell_timeout() is None
    monkeypatch.setenv("NORMCORE_CELL_TIMEOUT", "2")
    _, error = chapters.execute_notebook(bare("1", "import time; time.sleep(600)"), tmp_path)
    assert error.startswith("cell 2: CellTimeoutError")
    for wrong in ("0", "-1", "soon"):
        monkeypatch.setenv("NORMCORE_CELL_TIMEOUT", wrong)
        with pytest.raises(ValueError, match="NORMCORE_CELL_TIMEOUT must be an integer >= 1"):
            chapters.cell_timeout()


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
