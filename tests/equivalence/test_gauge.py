"""One step of the gauge recursion, and the growth factor."""

import math

import mpmath
import pytest
from helpers import EXACT
from hypothesis import assume, given
from hypothesis import strategies as st

import normcore as nc
from normcore.equivalence.gauge import (
    UpdateRule,
    advance_by,
    coupled_step,
    decoupled_step,
    growth_factor,
    nesterov_step,
    reset_threshold,
)

momenta = st.floats(0.0, 0.99)
fractions = st.floats(0.0, 1.0, exclude_max=True)


@given(momenta, fractions)
def test_growth_factor_is_the_larger_root(momentum, fraction):
    product = fraction * (1 - math.sqrt(momentum)) ** 2
    lr, weight_decay = 0.1, product / 0.1
    assume(lr * weight_decay < min(1, (1 - math.sqrt(momentum)) ** 2))  # else rounded past the critical point
    with mpmath.workdps(40):
        m, u = mpmath.mpf(momentum), mpmath.mpf(lr * weight_decay)
        root = ((1 + m - u) + mpmath.sqrt(max(0, (1 + m - u) ** 2 - 4 * m))) / 2
    # near the critical point the root moves like the square root of a rounding error
    assert abs(growth_factor(lr, weight_decay, momentum) - float(root)) < (
        EXACT if fraction < 0.999 else 1e-7
    )


@given(momenta, fractions)
def test_growth_factor_bounds(momentum, fraction):
    product = 0.999 * fraction * (1 - math.sqrt(momentum)) ** 2
    alpha = growth_factor(1.0, product, momentum)
    assert 1 - product / (1 - math.sqrt(momentum)) - EXACT <= alpha <= 1 - product / (1 - momentum) + EXACT


def test_growth_factor_at_the_standard_values():
    assert growth_factor(0.1, 5e-4, 0.9) == pytest.approx(0.99949773, abs=1e-8)
    assert growth_factor(0.1, 5e-4) == 1 - 5e-5


def test_growth_factor_exists_up_to_the_critical_point():
    assert growth_factor(0.5, 0.5, 0.25) == pytest.approx(0.5, rel=EXACT)  # a double root
    with pytest.raises(ValueError, match="beyond it the roots are complex"):
        growth_factor(0.5, 0.5000001, 0.25)


@given(st.floats(1e-3, 0.3), st.floats(1e-3, 0.3), st.floats(0.1, 0.95))
def test_stationary_ratio_is_a_fixed_point(lr, fraction, momentum):
    weight_decay = 0.9 * fraction * (1 - math.sqrt(momentum)) ** 2 / lr
    ratio = weight_decay / (growth_factor(lr, weight_decay, momentum) - momentum)
    step = coupled_step(ratio, lr, weight_decay, momentum, 0.0)
    assert step.ratio == pytest.approx(ratio, rel=1e-9)
    assert 1 - step.decrease == pytest.approx(growth_factor(lr, weight_decay, momentum), rel=EXACT)


def test_nesterov_without_momentum_is_the_coupled_step():
    plain, nesterov = coupled_step(0.0, 0.1, 0.5, 0.0, 0.0), nesterov_step(0.0, 0.1, 0.5, 0.0, 0.0)
    assert plain.decrease == nesterov.decrease and plain.ratio == nesterov.ratio
    assert nesterov.rate_gain == pytest.approx(1.0, rel=EXACT)


def test_each_rule_takes_its_step():
    hyper = (0.1, 0.2, 0.3, 0.9, 0.0)
    assert advance_by(UpdateRule(decoupled=True, nesterov=True))(*hyper) == (0.1, decoupled_step(*hyper))
    assert advance_by(UpdateRule(decoupled=False, nesterov=True))(*hyper) == (0.1, nesterov_step(*hyper))
    assert advance_by(UpdateRule(decoupled=False))(*hyper) == (0.1, coupled_step(*hyper))


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_gauge_is_reset_where_the_number_would_shrink_past_the_roots(nesterov):
    advance = advance_by(UpdateRule(decoupled=False, nesterov=nesterov))
    step = nesterov_step if nesterov else coupled_step
    for ratio in (2.0, 6.0):  # past the threshold, and not
        kept, taken = advance(ratio, 0.1, 0.3, 0.9, 0.0)
        alpha = 1 - step(ratio, 0.1, 0.3, 0.9, 0.0).decrease
        reset = alpha < reset_threshold(0.9, 0.1, 0.3, nesterov=nesterov)
        assert reset == (ratio == 6.0)
        assert kept == (0.0 if reset else ratio) and taken == step(kept, 0.1, 0.3, 0.9, 0.0)


def test_without_momentum_nothing_is_reset():
    assert advance_by(UpdateRule(decoupled=False))(0.0, 1.0, 0.6, 0.0, 0.0)[1].decrease == 0.6
    assert not nc.texp_plus_plus(1.0, 0.6, steps=5).corrections


def test_reset_threshold_is_half_the_modulus_of_the_roots():
    assert reset_threshold(0.81, 0.1, 0.1, nesterov=False) == pytest.approx(0.45)
    assert reset_threshold(0.81, 0.1, 1.0, nesterov=True) == pytest.approx(0.45 * math.sqrt(0.9))
