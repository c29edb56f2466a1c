"""Rulers against number-by-number versions."""

import numpy as np
import pytest
from oracles_lab import largest_gap, line_slope

from normcore.lab import gaps, max_gap, relative_gap, roundings, slope

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 6, 3, 4))


def test_gaps():
    assert gaps(A, B).shape == (6,)
    assert max_gap(A, B) == pytest.approx(largest_gap(A, B), rel=1e-12)
    assert max_gap(A, B) == gaps(A, B).max() > gaps(A, B).min()
    assert max_gap(A[:, 0, 0], B[:, 0, 0]) == pytest.approx(np.abs(A - B)[:, 0, 0].max())
    assert max_gap(A, A) == 0.0


def test_relative_gap():
    assert relative_gap(A, 1.25 * A) == pytest.approx(0.25, rel=1e-12)
    assert relative_gap(7 * A, 7 * B) == pytest.approx(relative_gap(A, B), rel=1e-12)
    assert relative_gap(A, B) != pytest.approx(relative_gap(B, A), rel=1e-3)


def test_the_farthest_twin_is_the_unit():
    near, far = A + 1e-3 * (B - A), A + 1e-1 * (B - A)
    assert roundings(A, B, near) == pytest.approx(1e3)
    assert roundings(A, B, far) == pytest.approx(10)
    assert roundings(A, B, near, far) == roundings(A, B, far, A, near) == roundings(A, B, far)
    with pytest.raises(ValueError, match="a and twin must be records of one shape"):
        roundings(A, B, near, far[:5])
    with pytest.raises(ValueError, match="twin must differ from a by a rounding, got a distance of 0"):
        roundings(A, B, A, A)


def test_a_gap_to_nan_is_nan():
    assert np.isnan(max_gap([0.0, 1.0], [0.0, np.nan]))


def test_slope():
    x, y = [1.0, 2.0, 4.0, 8.0, 9.0], [1.0, 2.1, 3.9, 8.2, 9.5]
    assert slope(x, y) == pytest.approx(line_slope(x, y), rel=1e-10)
    assert slope(x, y)[0] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaps(A, B[:5]), r"a and b must be records of one shape, not empty, got \(6, 3, 4\) and"),
        (lambda: max_gap(1.0, 2.0), "a and b must be records of one shape"),
        (lambda: relative_gap([1.0, 0.0], [1.0, 1.0]), "a must not be zero, got 0 at reading 1"),
        (lambda: slope([1, 2], [1, 2]), "at least three finite values > 0"),
        (lambda: slope([1, 2, 3], [1, 0, 2]), "at least three finite values > 0"),
        (lambda: slope([1, 2, 3], [1, np.inf, 2]), "at least three finite values > 0"),
        (lambda: slope([1, 2, 3], [1, 2]), r"one length, got shapes \(3,\) and \(2,\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
