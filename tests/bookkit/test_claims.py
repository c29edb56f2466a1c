"""A check is recorded with what was measured; one that comes out otherwise is marked, and stops nothing."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from normcore.bookkit import claims
from normcore.bookkit.claims import claim, parse_records, tally, verdict_class, verdict_table

ROOT = Path(__file__).parents[2]
OURS = {"source": "a test"}


@pytest.fixture(autouse=True)
def fresh_records():
    claims._records.clear()
    yield
    claims._records.clear()


def only():
    """The one record there is."""
    (record,) = verdict_table().records
    return record


@pytest.mark.parametrize(
    ("value", "relation", "bound", "holds"),
    [
        (1.0, "<", 2.0, True),
        (2.0, "<", 2.0, False),
        (2.0, "<=", 2.0, True),
        (3.0, ">", 2.0, True),
        (2.0, ">=", 3.0, False),
        (2, "==", 2, True),
        (0.5, "in", (0.0, 1.0), True),
        (1.5, "in", (0.0, 1.0), False),
        (math.nan, "<", 2.0, False),
        (math.nan, "in", (0.0, 1.0), False),
        (math.inf, "<", 2.0, False),
        (torch.tensor(1.0), "<", 2.0, True),
        (np.float32(1.0), "<", 2.0, True),
    ],
)
def test_relations(value, relation, bound, holds, capsys):
    claim("E1/x", value, relation, bound, **OURS)
    assert only().verdict == ("held" if holds else "did not hold (unexpected)")
    assert only().unexpected is not holds
    assert ("DOES NOT HOLD HERE  E1/x" in capsys.readouterr().out) is not holds


def test_the_kind_follows_from_the_id_and_what_is_guarded():
    claim("E1/x", 1, "<", 2, **OURS)
    claim("X1/y", 1, "<", 2, **OURS)
    claim("E1/z", 5, ">", 2, guards="E1/x", source="the wrong exponent")
    assert [r.kind for r in verdict_table().records] == ["paper", "extension", "control"]
    assert [r.row for r in verdict_table().records] == ["E1", "X1", "E1"]


def test_a_control_must_fail(capsys):
    claim("E1/x", 1, "<", 2, **OURS)
    claim("E1/z", 5, ">", 2, guards="E1/x", source="broken")
    claim("E1/w", 1, ">", 2, guards="E1/x", source="not broken enough")
    verdicts = {r.id: r.verdict for r in verdict_table().records}
    assert verdicts["E1/z"] == "failed, as it must" and verdicts["E1/w"] == "did not fail (unexpected)"
    assert "CONTROL DID NOT FAIL  E1/w" in capsys.readouterr().out


def test_a_control_guards_a_claim_of_its_chapter():
    claim("E1/z", 5, ">", 2, guards="E1/x", source="broken")
    with pytest.raises(ValueError, match="guards of E1/z must name a claim of this chapter, got 'E1/x'"):
        verdict_table()


def test_restrictions_are_kept_in_words():
    claim("C7/four", 4.0, "in", (3, 5), restriction="at depth 1", **OURS)
    assert only().verdict == "held with a restriction" and only().note == "at depth 1"


def test_a_finding_that_a_relation_fails_is_a_result(capsys):
    claim("C7/a", 4.0, ">", 10, expect="did not hold", restriction="one layer", **OURS)
    assert only().verdict == "did not hold" and not only().unexpected
    assert capsys.readouterr().out == ""
    claims._records.clear()
    claim("C7/a", 12.0, ">", 10, expect="did not hold", restriction="one layer", **OURS)
    assert only().verdict == "held (unexpected)" and "HOLDS HERE AFTER ALL" in capsys.readouterr().out
    claims._records.clear()
    claim("C7/a", math.nan, ">", 10, expect="did not hold", restriction="one layer", **OURS)
    assert only().unexpected  # a value that was not measured is no finding


@pytest.mark.parametrize("value", [4.0, 12.0])
def test_what_has_not_the_power_is_judged_neither_way(value):
    claim("C8/a", value, ">", 10, expect="not resolved", restriction="needs nets that fit", **OURS)
    assert only().verdict == "not resolved" and not only().unexpected


def test_a_not_resolved_value_must_be_measured():
    claim("C8/a", math.nan, ">", 10, expect="not resolved", restriction="needs nets that fit", **OURS)
    assert only().unexpected


def test_exact_statements_are_counted_in_roundings():
    claim("E2/a", 1.25, "<", 30, exact=True, **OURS)
    assert only().exact and only().bound == "30 roundings"
    with pytest.raises(ValueError, match="bound must be at most 30 roundings from above, got < 31"):
        claim("E2/b", 1.25, "<", 31, exact=True, **OURS)
    with pytest.raises(ValueError, match="bound must be at most 30 roundings"):
        claim("E2/b", 1.25, ">", 3, exact=True, **OURS)


def test_the_reader_sees_value_error_and_runs():
    claim("C8/gain", 4.612, ">", 2.5, n=10, se=0.61, **OURS)
    assert only().measured == "4.612 ± 0.61 (n = 10)" and only().value == 4.612
    assert "⟨4.612 ± 0.61 (n = 10)⟩ | > | 2.5" in repr(verdict_table())
    assert '<span class="measured">4.612 ± 0.61 (n = 10)</span>' in verdict_table()._repr_html_()


def test_a_cell_run_twice_is_one_record_with_the_new_value_and_another_claim_is_refused():
    claim("E1/x", 1.0, "<", 2.0, **OURS)
    claim("E1/x", 1.5, "<", 2.0, **OURS)
    assert only().value == 1.5
    with pytest.raises(ValueError, match="id must be new, got 'E1/x'"):
        claim("E1/x", 1.0, "<", 3.0, **OURS)


def test_the_table_reads_back_and_is_open_only_where_a_machine_disagrees():
    claim("E1/x", 0.123456, "<", 2.0, source="Lemma 1.3")
    claim("E2/y", 5.0, "in", (4, 6), restriction="on digits", **OURS)
    claim("E2/z", 7.0, ">", 6, guards="E2/y", source="broken <b>")
    assert parse_records(repr(verdict_table())) == verdict_table().records
    page = verdict_table()._repr_html_()
    assert '<details class="verdicts"><summary>3 checks: 2 of the papers, 1 control</summary>' in page
    assert "broken &lt;b&gt;" in page and page.count("<table") == 2
    claim("E3/x", 3.0, "<", 2.0, **OURS)
    assert '<details class="verdicts" open>' in verdict_table()._repr_html_()
    assert "1 NOT AS THE BOOK SAYS" in verdict_table()._repr_html_()
    assert parse_records(repr(verdict_table())) == verdict_table().records
    with pytest.raises(ValueError, match="text must be a verdict table"):
        parse_records("E1/x | < | 2")


def test_sanitised_tables_differ_in_nothing_but_what_was_measured():
    pattern = re.search(r"^regex: (.*)$", (ROOT / "tests" / "nbval.cfg").read_text(), re.MULTILINE)[1]

    def table(value, bound=2.0):
        claims._records.clear()
        claim("E1/x", value, "<", bound, n=3, se=value / 10, source="a | b".replace(" | ", "/"))
        return [re.sub(pattern, "#", text) for text in (repr(verdict_table()), verdict_table()._repr_html_())]

    assert table(1.0) == table(1.7)
    assert all(a != b for a, b in zip(table(1.0), table(1.0, 3.0), strict=True))
    assert all(a != b for a, b in zip(table(1.0), table(2.5), strict=True))  # another verdict


@pytest.mark.parametrize("id", ["E1", "E16/x", "X99/x", "E1/X y", "Z1/x"])
def test_ids_are_rows_of_the_scoreboard(id):
    with pytest.raises(ValueError, match="id must be a scoreboard row and a name"):
        claim(id, 1.0, "<", 2.0, **OURS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relation": "~"}, "relation must be one of"),
        ({"bound": (1, 2)}, "bound must be a pair for 'in' and a number otherwise"),
        ({"relation": "in"}, "bound must be a pair for 'in' and a number otherwise"),
        ({"source": ""}, "source must name who states E1/x"),
        ({"source": "a | b"}, "source must be one line without"),
        ({"restriction": "a\nb"}, "restriction must be one line without"),
        ({"expect": "maybe"}, "expect must be one of ('held', 'did not hold', 'not resolved'), got 'maybe'"),
        ({"expect": "did not hold"}, "restriction must say in words why"),
        ({"expect": "not resolved"}, "restriction must say in words why"),
        ({"guards": "nothing"}, "guards must be a scoreboard row and a name"),
        ({"guards": "E1/y", "restriction": "no"}, "guards must stand alone"),
    ],
)
def test_what_no_record_can_hold_is_refused(change, message):
    arguments = {"value": 1.0, "relation": "<", "bound": 2.0, **OURS, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        claim("E1/x", **arguments)
    assert verdict_table().records == []


def test_each_verdict_has_a_style():
    css = (ROOT / "book" / "_static" / "book.css").read_text()
    for verdict in ("held", "held with a restriction", "did not hold", "not resolved", "failed, as it must"):
        assert f".{verdict_class(verdict)} " in css
    assert verdict_class("held (unexpected)") == "verdict-unexpected" and ".verdict-unexpected" in css


def test_tally_counts_by_kind():
    assert tally([]) == "0 checks: none"
    claim("C8/a", 1, ">", 10, expect="not resolved", restriction="needs nets that fit", **OURS)
    claim("C8/b", 1, ">", 10, expect="did not hold", restriction="needs nets that fit", **OURS)
    assert tally(verdict_table().records) == "2 checks: 2 of the papers, 1 did not hold, 1 not resolved"


def test_rows_are_those_of_the_three_papers_and_ours():
    rows = [f"E{i}" for i in range(1, 16)] + [f"I{i}" for i in range(1, 13)] + [f"C{i}" for i in range(1, 11)]
    assert [row for row in claims.ROWS if not row.startswith("X")] == rows
    assert len(claims.PAPERS) == 4
