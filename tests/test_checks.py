"""Every refusal names the argument, its value and the condition."""

import numpy as np
import pytest

from normcore.checks import checked, checked_count


def test_arrays_pass_as_float64():
    array = checked("lr", [1, 2], above=0.0)
    assert array.dtype == np.float64 and array.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "value, limits, message",
    [
        ([1.0, np.nan], {}, "lr must be finite, got nan"),
        (0.0, {"above": 0.0}, "lr must be finite and > 0, got 0.0"),
        ([2.0, 0.5], {"least": 1.0}, "lr must be finite and >= 1, got 0.5"),
    ],
)
def test_values_out_of_range(value, limits, message):
    with pytest.raises(ValueError, match=message):
        checked("lr", value, **limits)


def test_not_a_number():
    with pytest.raises(TypeError, match="lr must be a number or an array of numbers, got 'fast'"):
        checked("lr", "fast")


def test_counts():
    assert checked_count("steps", np.int64(3)) == 3 and checked_count("steps", 0, least=0) == 0
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        checked_count("steps", 0)
    for wrong in (True, 2.0):
        with pytest.raises(TypeError, match="steps must be an integer, got"):
            checked_count("steps", wrong)
