"""Margins are measured in spreads, executions are remembered, and what is weak is named."""

import json
import math

import nbformat
import numpy as np
import pytest
import torch
from book_files import SETUP, chapter, write_book
from nbformat.v4 import new_notebook, new_output

from normcore import lab
from normcore.bookkit import robust
from normcore.bookkit.claims import Record, VerdictTable
from normcore.bookkit.robust import entry, interval, kicked, spread_and_margin, summary, weak


def record(value, verdict="held", *, kind="paper", relation="<", bound="5"):
    return Record("E1/x", kind, f"{value:g}", relation, bound, verdict, "s", "")


@pytest.mark.parametrize(
    ("values", "low", "high", "spread", "margin"),
    [
        ([1, 2, 3], -math.inf, 5, 1, 3),
        ([1, 2, 3], 0.5, math.inf, 1, 1.5),
        ([1, 2, 3], 0.5, 5, 1, 1.5),  # the nearer end
        ([1, 2, 3], -math.inf, 1, 1, -1),
        ([1, 100, 1e4], -math.inf, 1e8, math.log(100), 3),  # decades: logarithms
        ([2, 2, 2], -math.inf, 5, 0, math.inf),
        ([2, 2, 2], -math.inf, 1, 0, -math.inf),
    ],
)
def test_spread_and_margin(values, low, high, spread, margin):
    assert np.allclose(spread_and_margin(values, low, high), (spread, margin))


def test_a_value_that_is_no_number_has_no_margin():
    assert all(math.isnan(v) for v in spread_and_margin([1.0, math.inf], 0, 5))


def test_intervals_are_those_of_the_relations():
    assert interval("<=", "2.5") == (-math.inf, 2.5)
    assert interval(">", "1e-09") == (1e-9, math.inf)
    assert interval("in", "[0.9, 1.1]") == (0.9, 1.1)


def test_a_claim_near_its_bound_is_weak_and_one_far_from_it_is_not():
    near = entry(record(4), {"a": record(4.5), "b": record(3.5)})
    far = entry(record(1), {"a": record(1.5), "b": record(0.5)})
    assert near["margin"] == 2 and far["margin"] == 8
    assert "margin 2.0 spreads" in weak({"E1/x": near})[0] and weak({"E1/x": far}) == []


def test_kernels_that_move_nothing_do_not_make_a_margin_larger():
    draws = {"seed 1": record(4.5), "seed 2": record(3.5), "seed 3": record(4)}
    still = {name: record(4) for name in ("two threads", "last bit", "kernels of 2008", "kernels of 2013")}
    apart = entry(record(4), draws)
    assert entry(record(4), draws | still)["margin"] == apart["margin"] == pytest.approx(6**0.5, abs=5e-3)
    moved = entry(
        record(4), draws | {name: record(value) for name, value in zip(still, (3, 5, 3, 5), strict=True)}
    )
    assert moved["margin"] < apart["margin"]  # what only kernels move counts too


def test_a_finding_that_a_relation_fails_keeps_its_distance_too():
    found = entry(
        record(9, "did not hold"), {"a": record(10, "did not hold"), "b": record(8, "did not hold")}
    )
    assert found["margin"] == 4 and weak({"E1/x": found}) == []


def test_what_came_out_otherwise_or_is_missing_is_weak_whatever_its_kind():
    odd = record(1, kind="control", relation=">")
    control = entry(record(9, "failed, as it must", kind="control", relation=">"), {"seed 1": odd})
    assert "otherwise under seed 1" in weak({"E1/x": control})[0]
    missing = entry(record(1), {"seed 1": None})
    assert missing["otherwise"] == ["seed 1"]


def test_a_value_that_is_not_finite_has_no_room():
    assert weak({"E1/x": entry(record(9, relation=">"), {"a": record(math.inf, relation=">")})})


def test_exact_statements_need_no_spread():
    exact = entry(record(2, bound="30 roundings"), {"a": record(29, bound="30 roundings")})
    assert "margin" not in exact and weak({"E1/x": exact}) == []


def test_summary_counts_kinds_and_margins():
    checks = {
        "E1/a": entry(record(1), {"a": record(1.5), "b": record(0.5)}),
        "E1/b": entry(record(9, "failed, as it must", kind="control", relation=">"), {"a": record(9)}),
    }
    told = summary({"chapters": {"one": checks}, "missing": {}, "perturbations": {"a": {}}})
    assert told.startswith("2 checks (1 paper, 0 extension, 1 control), 0 exact; least margin 8, median 8")
    waiting = {"chapters": {"one": checks}, "missing": {"one": ["a"]}, "perturbations": {"a": {}, "b": {}}}
    assert summary(waiting).endswith("; 1 of 2 executions are still to be made")


def test_a_kick_moves_each_weight_by_its_last_bit():
    plain, moved = lab.mlp((8, 8, 2)), kicked(lab.mlp)((8, 8, 2))
    a, b = lab.weight_vector(plain), lab.weight_vector(moved)
    assert bool((a != b).all()) and bool(((b / a - 1).abs() < 2e-7).all())
    stack = kicked(lab.Stack)((8, 8, 2), [0, 1])
    assert not torch.equal(stack.weights[0], lab.Stack((8, 8, 2), [0, 1]).weights[0])


CODE = """from pathlib import Path
import os
from normcore import lab
with Path("log").open("a") as log:
    kicked = "k" if hasattr(lab.mlp, "__wrapped__") else ""
    log.write(os.environ["OMP_NUM_THREADS"] + os.environ.get("NORMCORE_SEED", "-") + kicked + "\\n")
import numpy as np
claim("E1/x", 1 + np.random.default_rng(0).random(), "<", 5, source="a test")"""


def stored(code, value):
    """A chapter as it lies in the book, with the verdict table of when this value was measured."""
    notebook, table = chapter(code), VerdictTable([record(value)])
    shown = new_output("execute_result", {"text/plain": repr(table)}, execution_count=1)
    notebook.cells[-1].outputs = [shown]
    return notebook


def test_the_book_is_executed_once_under_each_perturbation(tmp_path, monkeypatch, capsys):
    seeded, kick = {"NORMCORE_SEED": "1", "OMP_NUM_THREADS": "2"}, {"NORMCORE_KICK": "1"}
    monkeypatch.setattr(robust, "PERTURBATIONS", {"seed 1": seeded, "last bit": kick})
    value = float(f"{1 + np.random.default_rng(0).random():.4g}")  # to the digits that are stored
    write_book(tmp_path, one=stored(CODE, value))
    assert robust.run(tmp_path)
    assert sorted((tmp_path / "book" / "log").read_text().split()) == ["1-k", "21"]
    board = json.loads((tmp_path / "book" / "robustness.json").read_text())
    check = board["chapters"]["one"]["E1/x"]
    assert check["values"]["last bit"] == check["stored"] != check["values"]["seed 1"]
    assert "1 checks (1 paper" in capsys.readouterr().out
    assert robust.run(tmp_path)  # nothing changed: nothing is executed
    assert len((tmp_path / "book" / "log").read_text().split()) == 2
    path = tmp_path / "book" / "one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = f"import os\nassert 'NORMCORE_SEED' not in os.environ\n{SETUP}"
    nbformat.write(notebook, path)
    robust.collect(tmp_path)  # of the changed code nothing has been executed
    board = json.loads((tmp_path / "book" / "robustness.json").read_text())
    assert board["missing"] == {"one": ["seed 1", "last bit"]}
    capsys.readouterr()
    monkeypatch.setattr(robust, "PERTURBATIONS", {"seed 1": seeded})
    assert not robust.run(tmp_path)  # it is now, and what raises under a perturbation is weak
    printed = capsys.readouterr().out
    assert "cell 1: AssertionError" in printed and "otherwise under seed 1" in printed


@pytest.mark.parametrize(
    ("relation", "bound", "verdict", "value", "expected"),
    [
        ("<", "5", "held", 4, True),
        ("<", "5", "held", 6, False),
        ("<", "5", "did not hold", 6, True),
        ("<", "5", "did not hold", 4, False),
        ("==", "0", "held", 1, False),
        ("in", "[1, 2]", "held with a restriction", 1.5, True),
        ("<", "30 roundings", "held", 31, False),
        (">", "5", "not resolved", 1, True),
        (">", "5", "not resolved", math.nan, False),
        (">", "5", "failed, as it must", 1, False),
    ],
)
def test_a_value_is_judged_by_the_stored_bound(relation, bound, verdict, value, expected):
    assert robust.as_expected(record(0, verdict, relation=relation, bound=bound), value) is expected


def test_a_changed_bound_executes_nothing_and_is_judged_by_the_values_there():
    notebook = chapter('claim("E1/x", value, "<", 5, source="a")')
    before = robust.fingerprint(notebook)
    notebook.cells[2].source = 'claim("E1/x", value, "<", 2, source="b", n=3)'
    assert robust.fingerprint(notebook) == before
    notebook.cells[2].source = 'claim("E1/x", 2 * value, "<", 2, source="b")'
    assert robust.fingerprint(notebook) != before


def test_a_fingerprint_is_of_the_code_alone():
    notebook = chapter("1")
    before = robust.fingerprint(notebook)
    notebook.cells[0].source = "# Another title"
    assert robust.fingerprint(notebook) == before
    notebook.cells[2].source = "2"
    assert robust.fingerprint(notebook) != before
    assert robust.fingerprint(new_notebook()) != before
