"""Chapters: executed, stored in one form, and checked."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from normcore.bookkit import chapters

SETUP = "from normcore import bookkit\nfrom normcore.bookkit import claim\n\nprofile = bookkit.setup()"


def chapter(*codes):
    """A notebook with the frame of a chapter around the given cells."""
    cells = [
        new_markdown_cell("# Title"),
        *(new_code_cell(code) for code in (SETUP, *codes, "bookkit.verdict_table()")),
    ]
    return new_notebook(cells=cells)


def write_book(root, **notebooks):
    """A book of these notebooks."""
    (root / "book").mkdir()
    lines = ["format: jb-book", "root: book/index", "chapters:"]
    for name, notebook in notebooks.items():
        nbformat.write(notebook, root / "book" / f"{name}.ipynb")
        lines.append(f"  - file: book/{name}")
    (root / "_toc.yml").write_text("\n".join(lines))


def test_execute_names_the_claim_that_fails_and_goes_on(tmp_path, capsys):
    good, bad = chapter('claim("E1/x", 1, "<", 2)'), chapter('claim("E1/x", 3, "<", 2)')
    write_book(tmp_path, good=good, bad=bad)
    before = (tmp_path / "book" / "good.ipynb").read_text()
    assert not chapters.execute_all(tmp_path, tmp_path / "out")
    printed = capsys.readouterr().out
    assert (
        "claim E1/x does not hold: 3 < 2" in printed
        and "FAILED  bad" in printed
        and "ok      good" in printed
    )
    assert (tmp_path / "book" / "good.ipynb").read_text() == before  # the tree stays as it is
    stored = nbformat.read(tmp_path / "out" / "book" / "good.ipynb", as_version=4)
    assert chapters.problems(stored) == []
    assert [record.id for record in chapters.notebook_records(tmp_path / "out" / "book" / "good.ipynb")] == [
        "E1/x"
    ]
    assert not (tmp_path / "out" / "book" / "bad.ipynb").exists()


def test_a_kernel_that_dies_fails_its_chapter_alone(tmp_path, capsys):
    write_book(tmp_path, dead=chapter("import os; os._exit(1)"), good=chapter("1"))
    assert not chapters.execute_all(tmp_path, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "FAILED  dead" in printed and "DeadKernelError" in printed and "ok      good" in printed


def test_a_cell_that_hangs_fails_its_chapter(monkeypatch, tmp_path):
    monkeypatch.setattr(chapters, "CELL_TIMEOUT", 2)
    outcome = chapters.execute_notebook(chapter("import time; time.sleep(60)"), tmp_path)
    assert outcome.error.startswith("CellTimeoutError") and outcome.seconds < 50


def test_the_tally_tells_what_did_not_reproduce(tmp_path, capsys):
    code = """from normcore.bookkit import not_reproduced
claim("E1/x", 1, "<", 2)
not_reproduced("E1/y", 1, ">", 2)"""
    write_book(tmp_path, mixed=chapter(code))
    assert chapters.execute_all(tmp_path, tmp_path / "out")
    assert "1 claims held, 1 did not reproduce" in capsys.readouterr().out
    assert chapters.notebook_profile(tmp_path / "out" / "book" / "mixed.ipynb") == "ci"


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
