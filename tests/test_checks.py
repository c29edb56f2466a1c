"""Every refusal names the argument, its value and the condition."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from normcore.checks import (
    NonFiniteError,
    checked,
    checked_choice,
    checked_count,
    checked_counts,
    checked_loss,
    checked_number,
    checked_pair,
    checked_seed,
    columns,
    common_shape,
    numbers,
    real_tensor,
    require,
    require_device,
    require_examples,
    require_flags,
    require_momentum,
    require_range,
    require_type,
    understood,
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


GRAD = torch.ones(3, requires_grad=True)


@pytest.mark.parametrize(
    "taken",
    [
        lambda: numbers("x", np.array([Fraction(1, 3)], dtype=object)).tolist() == [1 / 3],
        lambda: checked_counts("sizes", [1, np.int64(2)]) == (1, 2),
        lambda: [checked_seed(seed) for seed in (-(2**63), 0, 2**63 - 1)] == [-(2**63), 0, 2**63 - 1],
        lambda: real_tensor("x", complex_free := torch.ones(2, dtype=torch.float32)) is complex_free,
        lambda: real_tensor("x", [1, 2]).dtype == torch.float64,
        lambda: require_flags(a=True, b=np.False_) is None,
        lambda: require_device("cpu") is None,
        lambda: require_range("x", np.array([0.0, 1.0])) is None,
        lambda: require_momentum("momentum", torch.tensor([0.0, 0.99])) is None,
        lambda: checked_pair(["x", "y"]) == ("x", "y"),
        lambda: require_examples(torch.ones(2, 3), torch.ones(2)) is None,
        lambda: checked_loss(GRAD.sum().reshape(1)).shape == (),
        lambda: checked_loss(GRAD.sum() * np.inf, finite=False).isinf(),
        lambda: columns(3, lr=0.0, weight_decay=-5.0)[1].tolist() == [-5.0] * 3,
        lambda: columns(None, lr=[0.5], weight_decay=1.9)[0].tolist() == [0.5],
    ],
)
def test_what_fits_is_taken(taken):
    assert taken()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: numbers("x", np.array([True], dtype=object)), TypeError, "x must be a number"),
        (lambda: numbers("x", np.array([np.False_, 1.0], dtype=object)), TypeError, "x must be a number"),
        (lambda: checked_counts("sizes", "12"), TypeError, "sizes must be a sequence of integers, got '12'"),
        (lambda: checked_counts("sizes", 3), TypeError, "sizes must be a sequence of integers, got 3"),
        (lambda: checked_counts("sizes", [2, 0]), ValueError, "sizes must be >= 1, got 0"),
        (lambda: checked_seed(2**63), ValueError, r"seed must be < 2\*\*63"),
        (lambda: checked_seed(-(2**63) - 1), ValueError, "seed must be >= -9223372036854775808"),
        (lambda: real_tensor("x", torch.ones(1) * 1j), TypeError, "x must be a number"),
        (lambda: real_tensor("x", [np.inf]), ValueError, "x must be finite, got inf"),
        (lambda: require_flags(a=True, b=1), TypeError, "b must be True or False, got int"),
        (lambda: require_device(0), TypeError, "device must be a torch device, got int"),
        (
            lambda: require_device("nowhere"),
            ValueError,
            "device must be one that torch has here, got 'nowhere'",
        ),
        (
            lambda: require_device("cuda:99"),
            ValueError,
            "device must be one that torch has here, got 'cuda:99'",
        ),
        (
            lambda: require_range("x", np.array([1.0, 0.0]), positive=True),
            ValueError,
            "finite and > 0, got 0.0",
        ),
        (lambda: require_range("x", torch.tensor(np.inf)), ValueError, "x must be finite and >= 0, got inf"),
        (lambda: require_range("x", -1e-9), ValueError, "x must be finite and >= 0, got -1e-09"),
        (lambda: require_momentum("m", np.array([0.5, 1.0])), ValueError, r"m must be in \[0, 1\), got 1.0"),
        (
            lambda: require_momentum("m", np.array([-0.1, 0.5])),
            ValueError,
            r"m must be in \[0, 1\), got -0.1",
        ),
        (lambda: checked_pair((1, 2, 3)), TypeError, r"batch must be a pair \(x, y\), got tuple"),
        (lambda: checked_pair({"x": 1, "y": 2}), TypeError, r"batch must be a pair \(x, y\), got dict"),
        (lambda: require_examples([1], torch.ones(1)), TypeError, "x must be a tensor, got list"),
        (
            lambda: require_examples(torch.ones(1), [1], " of b"),
            TypeError,
            "y of b must be a tensor, got list",
        ),
        (lambda: require_examples(torch.ones(2), torch.ones(3)), ValueError, "as many examples"),
        (lambda: require_examples(torch.ones(0, 3), torch.ones(0)), ValueError, "as many examples"),
        (lambda: require_examples(torch.ones(()), torch.ones(1)), ValueError, "as many examples"),
        (lambda: require_examples(torch.ones(1), torch.ones(())), ValueError, "as many examples"),
        (lambda: checked_loss(0.5), TypeError, "loss_fn's value must be a tensor, got float"),
        (lambda: checked_loss(GRAD), ValueError, r"one number, got shape \(3,\)"),
        (lambda: checked_loss(GRAD.sum() * np.nan), NonFiniteError, "finite on the batch, got nan"),
        (lambda: checked_loss(torch.tensor(1.0)), ValueError, "depend on the model's output"),
        (lambda: columns(None, lr=0.1), ValueError, "steps must be given when lr are all scalars"),
        (lambda: columns(None, lr=[[0.1]]), ValueError, r"lr must be a number .*, got shape \(1, 1\)"),
        (lambda: columns(2, lr=[0.1, -0.1]), ValueError, "lr must be finite and >= 0, got -0.1 at step 1"),
        (lambda: columns(1, momentum=1.0), ValueError, r"momentum must be in \[0, 1\), got 1.0$"),
        (lambda: columns(1, dampening=-0.5), ValueError, r"dampening must be in \[0, 1\), got -0.5"),
        (lambda: columns(1, weight_decay=np.inf), ValueError, "weight_decay must be finite, got inf"),
        (lambda: columns(1, lr=0.5, weight_decay=2.0), ValueError, r"1 - lr\*weight_decay > 0, got 2.0"),
        (lambda: columns(0, lr=0.5), ValueError, "steps must be >= 1, got 0"),
        (lambda: columns(3, lr=[0.5]), ValueError, "lengths must agree"),
    ],
)
def test_what_does_not_fit_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("failure", [KeyError("x"), ZeroDivisionError(), AttributeError("x"), RuntimeError()])
def test_a_state_that_cannot_be_read_is_at_fault(failure):
    with (
        pytest.raises(ValueError, match="state must be a record, got one that cannot be read") as told,
        understood({}, "a record"),
    ):
        raise failure
    assert told.value.__cause__ is failure
    with pytest.raises(TypeError, match="state must be a record, got list"), understood([], "a record"):
        pass
    with pytest.raises(MemoryError), understood({}, "a record"):  # which is no fault of the state
        raise MemoryError
