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


def test_problems_names_each_fault():
    notebook = chapters.canonical(
        chapter("plot();", "class A: pass", "\n".join(["x = 1"] * 26), "loss.backward()")
    )
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", name="stderr", text="warning")]
    notebook.cells[3].outputs = [nbformat.v4.new_output("display_data", {"text/plain": "<A at 0x7f00>"})]
    notebook.cells[4].execution_count = None
    found = "\n".join(chapters.problems(notebook))
    for fault in (
        "counts are not 1, 2",
        "ends in a semicolon",
        "defines a class",
        "26 lines",
        "training loop",
        "stderr",
        "an address",
    ):
        assert fault in found
    frame = "\n".join(chapters.problems(chapters.canonical(new_notebook(cells=[new_code_cell("1")]))))
    assert "not the set-up cell" in frame and "not bookkit.verdict_table()" in frame


def test_unknown_command_prints_the_usage(capsys):
    assert chapters.main(["dance"]) == 2
    assert "execute DEST" in capsys.readouterr().out
