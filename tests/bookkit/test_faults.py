"""Each fault of a stored chapter is named."""

import nbformat
import pytest
from book_files import GOOD, chapter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from normcore.bookkit import chapters
from normcore.bookkit.chapters import MISSING, directives, only_draws_or_claims, problems


def faults(notebook):
    return "\n".join(problems(notebook, MISSING))


def test_problems_names_each_fault():
    notebook = chapters.canonical(
        chapter("plot();", "class A: pass", "\n".join(["x = 1"] * 31), "loss.backward()", "x" * 85, GOOD)
    )
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", name="stderr", text="warning")]
    notebook.cells[3].outputs = [nbformat.v4.new_output("display_data", {"text/plain": "<A at 0x7f00>"})]
    notebook.cells[4].execution_count = None
    notebook.cells[5].outputs = [nbformat.v4.new_output("stream", text="held (unexpected)")]
    found = faults(notebook)
    for fault in (
        "counts are not 1, 2",
        "ends in a semicolon",
        "defines a class",
        "31 lines",
        "training loop",
        "stderr",
        "an address",
        "more than 84 columns",
        "only draws or claims",
        "otherwise than the book says",
    ):
        assert fault in found
    frame = faults(chapters.canonical(new_notebook(cells=[new_code_cell("1")])))
    assert "not the set-up cell" in frame and "not bookkit.verdict_table()" in frame


def test_a_sound_chapter_has_none():
    assert faults(chapters.canonical(chapter("1 + 1"))) == ""


def test_a_folded_cell_may_be_longer():
    notebook = chapter("\n".join(["x = 1"] * 50))
    notebook.cells[2].metadata["tags"] = ["hide-input"]
    assert faults(chapters.canonical(notebook)) == ""


@pytest.mark.parametrize(
    ("code", "folded"),
    [
        ("with plots.panels() as ax:\n    plots.curve(ax, x, y)", True),
        ('few = {"n": 3}\nclaim("E1/a", gap, "<", 2, **few)', True),
        ('claim("E1/a", lab.max_gap(a, b), "<", 2)', True),
        ('run = lab.run(net, batches)\nclaim("E1/a", run["x"][0], "<", 2)', False),
        ("def f(x):\n    return x\n\n\nwith plots.panels() as ax:\n    ax.plot(f(1))", False),
        ("x = 1", False),
        ("%pip install x", False),
    ],
)
def test_what_is_folded(code, folded):
    assert only_draws_or_claims(code) is folded


DAMAGED = """:::{prf:theorem} The SDE of a normalized ne
:label: 10-the-sde-block-1t
:label: thm-sde-main
Text with :label: inside.
:::"""


def test_a_directive_keeps_one_label_written_by_a_person():
    assert list(directives(DAMAGED)) == [
        (
            "prf:theorem",
            "The SDE of a normalized ne",
            [":label: 10-the-sde-block-1t", ":label: thm-sde-main"],
        )
    ]
    notebook = chapter("1")
    notebook.cells.insert(1, new_markdown_cell(DAMAGED))
    found = faults(chapters.canonical(notebook))
    assert "gives an option twice" in found and "a label that no person wrote" in found
