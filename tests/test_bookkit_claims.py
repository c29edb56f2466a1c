"""Claims hold or stop the chapter; the table prints the same everywhere."""

import math

import numpy as np
import pytest
import torch

from normcore.bookkit import claims
from normcore.bookkit.claims import ClaimError, claim, not_reproduced, parse_records, verdict_table


@pytest.fixture(autouse=True)
def fresh_records():
    claims.clear()
    yield
    claims.clear()


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
        (math.nan, "<", 1.0, False),
        (math.nan, ">", 1.0, False),
        (torch.tensor(0.5), "<", 1.0, True),
        (np.float32(0.5), "<", 1.0, True),
    ],
)
def test_relations(value, relation, bound, holds):
    if holds:
        claim("E1/x", value, relation, bound)
        assert len(verdict_table().records) == 1
    else:
        with pytest.raises(ClaimError, match="claim E1/x does not hold"):
            claim("E1/x", value, relation, bound)
        assert verdict_table().records == []


def test_the_message_has_both_numbers_and_the_spread():
    with pytest.raises(
        ClaimError, match=r"claim E2/gap does not hold: 3.2e-09 < 1e-10, n=5, se=0.1 \(Thm 2.1\)"
    ):
        claim("E2/gap", 3.2e-9, "<", 1e-10, source="Thm 2.1", n=5, se=0.1)


def test_a_result_that_does_not_reproduce_is_recorded_and_guarded():
    not_reproduced("C7/twelve", 4.0, ">=", 10.0)
    assert verdict_table().records[0].verdict == "did not reproduce"
    with pytest.raises(ClaimError, match="expected not to reproduce, but holds: 12 >= 10"):
        not_reproduced("C7/other", 12.0, ">=", 10.0)


def test_nan_is_no_measurement_and_so_no_verdict():
    with pytest.raises(ClaimError, match="claim C7/twelve has no measured value: nan >= 10"):
        not_reproduced("C7/twelve", math.nan, ">=", 10.0)
    assert verdict_table().records == []


@pytest.mark.parametrize("source", ["a | b", "two\nlines"])
def test_a_source_that_would_not_read_back_is_refused(source):
    with pytest.raises(ValueError, match="source must be one line without ' | '"):
        claim("E1/x", 1.0, "<", 2.0, source=source)
    claim("E1/x", 1.0, "<", 2.0, source="|w| of Lemma 1.3")
    assert parse_records(repr(verdict_table())) == verdict_table().records


def test_restrictions():
    claim("C7/four", 4.0, "in", (3, 5), restriction="at depth 1")
    assert verdict_table().records[0].verdict == "held with a restriction"


def test_the_same_claim_twice_is_one_record_and_another_is_refused():
    claim("E1/x", 1.0, "<", 2.0)
    claim("E1/x", 1.5, "<", 2.0)
    assert len(verdict_table().records) == 1
    with pytest.raises(ValueError, match="id must be new, got 'E1/x'"):
        claim("E1/x", 1.0, "<", 3.0)


def test_the_table_hides_values_and_reads_back():
    claim("E1/x", 0.123456, "<", 2.0, source="Lemma 1.3")
    claim("E2/y", 5.0, "in", (4, 6), restriction="on digits")
    text = repr(verdict_table())
    assert "0.123" not in text
    assert parse_records(text) == verdict_table().records
    assert "verdict-held" in verdict_table()._repr_html_()
    with pytest.raises(ValueError, match="text must be a verdict table"):
        parse_records("E1/x | < | 2")


@pytest.mark.parametrize("id", ["E1", "E16/x", "X1/x", "E1/X y"])
def test_ids_are_rows_of_the_scoreboard(id):
    with pytest.raises(ValueError, match="id must be a scoreboard row and a name"):
        claim(id, 1.0, "<", 2.0)


def test_unknown_relation():
    with pytest.raises(ValueError, match="relation must be one of"):
        claim("E1/x", 1.0, "~", 2.0)
