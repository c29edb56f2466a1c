"""The page of what people report: every situation has tests that exist, and figures that they gave."""

import re

import practice
import pytest

ROWS = practice.rows(practice.PAGE.read_text(encoding="utf-8"))
CASES = [f"{n:02d}" for n in range(1, 45) if n not in (12, 36, 40)]
"""Of the review; it has none of the numbers left out."""


def test_no_situation_is_missing():
    told = " ".join(re.match(r"\*\*(.+?)\*\*", cells[0])[1] for cells in ROWS).replace(",", " ").split()
    assert set(CASES) | {"04b", "26b"} <= set(told)
    assert {f"A{n}" for n in (1, 2, 3, 6, 15, 16)} | {f"F{n}" for n in range(1, 13)} <= set(told)


@pytest.mark.parametrize("cells", ROWS, ids=lambda cells: cells[0].split("**")[1])
def test_every_row_has_tests_that_exist_and_what_they_gave(cells):
    known = practice.functions()
    assert [name for name, _ in practice.named(cells) if name not in known] == []
    assert len(cells) == 4 and all(cells)
    assert "FAILED" not in cells[2] and re.search(r"\de-\d\d|\de\+00|Error: |right|not run", cells[2])


def test_figures_are_read_off_assertions():
    assert practice.figures("(2.2e-14 < 1e-09 and 0.3 > 1e-05)\n  2 < 1e-3") == [2.2e-14]
    assert practice.figures("3.0 < (10 * 0.2)") == practice.figures("0.02 < 0.1") == []
    assert practice.figures("0.0 < 1e-09") == [0.0] and practice.figures("-3.0 < 1e-09") == []


def test_a_row_tells_the_largest_figure_or_the_errors_or_that_all_is_right():
    cells, key = ["**00** x", "", "old", "one"], ("test_one", None)
    listener = practice.Listener([key])
    assert listener.told(cells) == "old"  # nothing was run
    listener.outcomes[key] = "passed"
    assert listener.told(cells) == "right"
    listener.figures[key], listener.errors[key] = [1e-16, 2.04e-12], ["ValueError: no"]
    assert listener.told(cells) == "2e-12; ValueError: no"
    listener.outcomes[key] = "failed"
    assert listener.told(cells) == "FAILED"


def test_errors_lose_what_was_given():
    error = ValueError("rule must be one of [a], got 'rmsprop'")
    assert practice.said(error) == r"ValueError: rule must be one of \[a\]"
