"""One formula for floats, arrays and tensors."""

import numpy as np
import pytest
import torch

from normcore.checks import require, require_momentum, require_range
from normcore.norm_dynamics.rates import apply, common, plain, where


def test_common_brings_to_one_kind():
    a, b = common(a=1, b=[1.0, 2.0])
    assert a.dtype == b.dtype == np.float64 and a.shape == ()
    a, b, c = common(a=1.0, b=np.ones(3), c=torch.tensor([1, 2, 3], dtype=torch.float32))
    assert all(isinstance(x, torch.Tensor) and x.dtype == torch.float32 for x in (a, b, c))
    a, b = common(a=torch.tensor(1), b=torch.tensor(2.0, dtype=torch.float64))
    assert a.dtype == b.dtype == torch.float64
    with pytest.raises(TypeError, match="a must be a number or an array of numbers, got None"):
        common(a=None)


def test_plain_gives_floats_for_scalars_only():
    assert type(plain(np.float64(1.5))) is float and type(plain(np.asarray(2))) is float
    assert plain(np.ones(2)).shape == (2,) and isinstance(plain(torch.tensor(1.0)), torch.Tensor)


def test_apply_and_where_agree_in_both_libraries():
    x = np.array([-0.5, 0.25])
    for ours in (x, torch.tensor(x)):
        values = where(ours > 0, apply("expm1", ours), 0.0 * ours)
        assert np.allclose(np.asarray(values), [0.0, np.expm1(0.25)], rtol=1e-15)


def test_require_names_the_first_value_that_breaks_it():
    for value in (np.array([1.0, -2.0, -3.0]), torch.tensor([1.0, -2.0, -3.0])):
        with pytest.raises(ValueError, match="x must be finite and >= 0, got -2.0"):
            require_range("x", value)
    with pytest.raises(ValueError, match="x must be finite and > 0, got 0.0"):
        require_range("x", np.array(0.0), positive=True)
    with pytest.raises(ValueError, match="x must be finite and >= 0, got nan"):
        require_range("x", np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"m must be in \[0, 1\), got 1.0"):
        require_momentum("m", torch.tensor(1.0))
    with pytest.raises(ValueError, match="x must be small, got 3.0"):
        require("x", 3.0, "small", np.array([True, False]))  # the condition may be wider than the value
    require_range("x", np.zeros(3))
    require_momentum("m", np.array(0.0))
