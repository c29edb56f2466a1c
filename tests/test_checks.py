"""Every refusal names the argument, its value and the condition."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from normcore.checks import (
    checked,
    checked_choice,
    checked_count,
    checked_number,
    columns,
    common_shape,
    numbers,
    require,
    require_type,
)


def test_arrays_pass_as_float64():
    array = checked("lr", [1, 2], above=0.0)
    assert array.dtype == np.float64 and array.tolist() == [1.0, 2.0]
    assert numbers("lr", torch.tensor([1, 2])).tolist() == [1.0, 2.0]
    assert numbers("lr", [Fraction(1, 2), 3]).tolist() == [0.5, 3.0]


@pytest.mark.parametrize(
    "value, limits, message",
    [
        ([1.0, np.nan], {}, "lr must be finite, got nan"),
        (0.0, {"above": 0.0}, "lr must be finite and > 0, got 0.0"),
        ([2.0, 0.5], {"least": 1.0}, "lr must be finite and >= 1, got 0.5"),
        (4.0, {"above": 2.0, "below": 4.0}, "lr must be finite and > 2 and < 4, got 4.0"),
    ],
)
def test_values_out_of_range(value, limits, message):
    with pytest.raises(ValueError, match=message):
        checked("lr", value, **limits)


@pytest.mark.parametrize(
    "value",
    [None, "fast", "0.1", True, 1j, [1.0, None], [[1.0], 2.0], object(), torch.ones(2, requires_grad=True)],
)
def test_not_a_number(value):
    with pytest.raises(TypeError, match="lr must be a number or an array of numbers, got "):
        checked("lr", value)


def test_what_is_long_is_not_said_in_full():
    with pytest.raises(TypeError, match="got a list$"):
        numbers("lr", [None] * 1000)


def test_one_number():
    assert checked_number("lr", np.float32(0.5)) == 0.5 and type(checked_number("lr", 1)) is float
    with pytest.raises(ValueError, match=r"lr must be one number, got shape \(1,\)"):
        checked_number("lr", [0.1])


def test_counts():
    assert checked_count("steps", np.int64(3)) == 3 and checked_count("steps", 0, least=0) == 0
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        checked_count("steps", 0)
    for wrong in (True, 2.0):
        with pytest.raises(TypeError, match="steps must be an integer, got"):
            checked_count("steps", wrong)


def test_words_and_types():
    assert checked_choice("method", "b", ("a", "b")) == "b"
    with pytest.raises(ValueError, match=r"method must be one of \('a', 'b'\), got 'c'"):
        checked_choice("method", "c", ("a", "b"))
    with pytest.raises(TypeError, match=r"method must be one of \('a', 'b'\), got None"):
        checked_choice("method", None, ("a", "b"))
    with pytest.raises(TypeError, match="model must be a module, got int"):
        require_type("model", 3, torch.nn.Module, "a module")


def test_shapes():
    assert common_shape(a=np.ones((2, 1)), b=torch.ones(3)) == (2, 3)
    with pytest.raises(ValueError, match=r"a, b must broadcast, got shapes \{'a': \(2,\), 'b': \(3,\)\}"):
        common_shape(a=np.ones(2), b=np.ones(3))


def test_scalars_take_the_length_of_the_arrays():
    lr, momentum = columns(None, lr=[0.1, 0.2], momentum=0.9)
    assert lr.tolist() == [0.1, 0.2] and momentum.tolist() == [0.9, 0.9]


def test_lengths_are_named():
    with pytest.raises(ValueError, match=r"lengths must agree, got \{'lr': 2, 'momentum': 3\}"):
        columns(None, lr=[0.1, 0.2], momentum=[0.9] * 3)
    with pytest.raises(ValueError, match="lr must hold a number for at least one step, got none"):
        columns(None, lr=[])


def test_require_names_the_first_that_breaks_it():
    values = np.array([1.0, -1.0, -2.0])
    require("value", values, "< 2", values < 2)
    with pytest.raises(ValueError, match="value must be > 0, got -1.0 at step 1"):
        require("value", values, "> 0", values > 0, at="step")
    with pytest.raises(ValueError, match="value must be > 0, got -1.0$"):
        require("value", torch.tensor(values, dtype=torch.bfloat16), "> 0", torch.tensor(values) > 0)
    # A scalar has no place.
    with pytest.raises(ValueError, match="lr must be finite and >= 0, got -0.1$"):
        columns(1, lr=-0.1, momentum=0.0)
