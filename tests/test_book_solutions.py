"""Every closed exercise has a solution that runs, in at most ten lines of code."""

import re
from pathlib import Path

import nbformat
import pytest

BOOK = Path(__file__).parent.parent / "book"
CHAPTERS = sorted(BOOK.glob("[0-9]*.ipynb"))
EXERCISE = re.compile(r":::\{exercise\}[^\n]*\n:label: ([\w-]+)\n(.*?)\n:::", re.S)
SOLUTION = re.compile(r":::\{solution\} ([\w-]+)\n(.*?)\n:::", re.S)
CODE = re.compile(r"```python\n(.*?)```", re.S)
LONGEST = 10
GIVEN = """
import numpy as np
import sympy as sp
import torch

import normcore as nc
from normcore import lab
"""
"""What the set-up cell of each chapter imports."""


def prose(path):
    return "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")


def exercises():
    for path in CHAPTERS:
        text = prose(path)
        answers = dict(SOLUTION.findall(text))
        for label, question in EXERCISE.findall(text):
            if not question.lstrip().startswith(("Open", "**Open")):
                yield pytest.param(answers.get(label), id=f"{path.stem[:2]}-{label}")


@pytest.mark.parametrize("answer", list(exercises()))
def test_a_closed_exercise_has_a_solution_that_runs(answer):
    assert answer is not None, "no solution"
    blocks = CODE.findall(answer)
    assert blocks, "no code in the solution"
    code = "\n".join(blocks)
    assert 1 <= len([line for line in code.splitlines() if line.strip()]) <= LONGEST
    assert "assert" in code, "the solution checks nothing"
    exec(compile(GIVEN + code, "solution", "exec"), {})


def test_chapters_have_exercises():
    assert all(EXERCISE.search(prose(path)) for path in CHAPTERS)
