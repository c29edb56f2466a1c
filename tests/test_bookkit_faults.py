"""Each fault of a stored chapter is named."""

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from test_bookkit_chapters import chapter

from normcore.bookkit import chapters
from normcore.bookkit.faults import problems


def test_problems_names_each_fault():
    notebook = chapters.canonical(
        chapter("plot();", "class A: pass", "\n".join(["x = 1"] * 26), "loss.backward()")
    )
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", name="stderr", text="warning")]
    notebook.cells[3].outputs = [nbformat.v4.new_output("display_data", {"text/plain": "<A at 0x7f00>"})]
    notebook.cells[4].execution_count = None
    found = "\n".join(problems(notebook))
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
    frame = "\n".join(problems(chapters.canonical(new_notebook(cells=[new_code_cell("1")]))))
    assert "not the set-up cell" in frame and "not bookkit.verdict_table()" in frame


def test_a_sound_chapter_has_none():
    assert problems(chapters.canonical(chapter("1 + 1"))) == []
