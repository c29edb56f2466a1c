"""Checks of numbers: what they accept and what they say."""

import numpy as np
import pytest

from normcore.checks import columns, require


def test_scalars_take_the_length_of_the_arrays():
    lr, momentum = columns(None, lr=[0.1, 0.2], momentum=0.9)
    assert lr.tolist() == [0.1, 0.2] and momentum.tolist() == [0.9, 0.9]


def test_lengths_are_named():
    with pytest.raises(ValueError, match=r"lengths must agree, got \{'lr': 2, 'momentum': 3\}"):
        columns(None, lr=[0.1, 0.2], momentum=[0.9] * 3)


def test_require_names_the_first_step_that_breaks():
    values = np.array([1.0, -1.0, -2.0])
    require("value", values, "< 2", values < 2)
    with pytest.raises(ValueError, match="value must be > 0, got -1.0 at step 1"):
        require("value", values, "> 0", values > 0, at="step")
