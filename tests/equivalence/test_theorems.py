"""The named theorems, each against the run it claims to equal, and against what breaks it."""

import numpy as np
import pytest
from helpers import TRAJECTORY, VISIBLE
from oracles import RandomLoss, decayed_run, direction_gap, free_run, texp_recursion

import normcore as nc

PHASES = [(0.1, 60), (0.03, 60), (0.05, 60)]
RATES = np.repeat([lr for lr, _ in PHASES], [n for _, n in PHASES])


def gap(schedule, lr, weight_decay, momentum, corrections=None):
    """The direction gap between the run with decay and the run along the schedule, both from a zero
    buffer."""
    loss = RandomLoss(seed=3)
    original, _ = decayed_run(loss, schedule.steps, lr, weight_decay, momentum)
    free, _ = free_run(
        loss, schedule.lr, momentum, corrections=schedule.corrections if corrections is None else corrections
    )
    return direction_gap(original, free)


def test_theorem_2_1():
    schedule = nc.exponential_lr(0.1, 2e-2, steps=300)
    np.testing.assert_allclose(schedule.lr, 0.1 * (1 - 2e-3) ** -(2.0 * np.arange(300) + 1), rtol=1e-11)
    assert not schedule.corrections
    assert gap(schedule, 0.1, 2e-2, 0.0) < TRAJECTORY


@pytest.mark.parametrize("weight_decay", [5e-4, 2e-2])
def test_theorem_2_9(weight_decay):
    schedule = nc.exponential_lr(0.1, weight_decay, 0.9, steps=200)
    alpha = np.roots([1, -(1.9 - 0.1 * weight_decay), 0.9]).real.max()
    np.testing.assert_allclose(
        schedule.log_lr, np.log(0.1) - (2 * np.arange(200) + 1) * np.log(alpha), rtol=1e-9
    )  # np.roots' digits
    assert schedule.corrections[0] == pytest.approx(-weight_decay / (alpha - 0.9), rel=1e-9)
    assert gap(schedule, 0.1, weight_decay, 0.9) < TRAJECTORY
    assert (
        gap(schedule, 0.1, weight_decay, 0.9, corrections={}) > VISIBLE
    )  # control: the initial buffer forgotten


def test_theorem_2_9_stops_at_the_critical_point():
    with pytest.raises(ValueError, match=r"lr\*weight_decay must lie in \[0, \(1-sqrt\(momentum\)\)\^2\]"):
        nc.exponential_lr(0.1, 0.08, 0.9, steps=10)


@pytest.mark.parametrize("weight_decay", [2e-2, [2e-2, 1e-2, 5e-3]])
def test_theorem_2_12(weight_decay):
    decays = np.repeat(np.broadcast_to(weight_decay, 3), 60)
    schedule = nc.texp(PHASES, weight_decay, 0.9)
    assert sorted(schedule.corrections) == [0, 60, 120]
    assert gap(schedule, RATES, decays, 0.9) < TRAJECTORY
    only_first = {0: schedule.corrections[0]}
    assert gap(schedule, RATES, decays, 0.9, corrections=only_first) > VISIBLE


def test_theorem_2_12_product_rule():
    np.testing.assert_allclose(
        nc.texp(PHASES, 2e-2, 0.9).lr, texp_recursion(PHASES, 2e-2, 0.9), rtol=1e-9
    )  # np.roots' digits


def test_texp_without_instant_decay_is_a_weight_decay_schedule():
    minus = nc.texp(PHASES, 2e-2, 0.9, instant_decay=False)
    decays = 2e-2 * RATES / RATES[0]
    assert gap(minus, 0.1, decays, 0.9) < TRAJECTORY
    full = nc.texp(PHASES, 2e-2, 0.9)
    np.testing.assert_allclose(
        np.diff(minus.log_lr)[62:118], np.diff(full.log_lr)[62:118], rtol=1e-9
    )  # same growth inside a phase
    assert full.log_lr[60] - minus.log_lr[60] == pytest.approx(np.log(0.3), abs=1e-3)


def test_theorem_2_13():
    schedule = nc.texp_plus_plus(RATES, 2e-2, 0.9)
    assert not schedule.corrections
    assert gap(schedule, RATES, 2e-2, 0.9) < TRAJECTORY
    with pytest.raises(ValueError, match="a gauge that needs one before step"):
        nc.texp_plus_plus(0.1, 0.08, 0.9, steps=600)


def test_theorem_2_13_closed_form():
    z = np.sort(np.roots([1, -(1.9 - 2e-3), 0.9]).real)[::-1]
    t = np.arange(101)
    x = (z[0] ** (t + 1) * (1 - z[1]) - z[1] ** (t + 1) * (1 - z[0])) / (z[0] - z[1])
    np.testing.assert_allclose(np.exp(nc.texp_plus_plus(0.1, 2e-2, 0.9, steps=100).log_scale), x, rtol=1e-10)


def test_weight_decay_comes_back():
    decays = 1e-2 * np.random.default_rng(0).uniform(0, 2, 180)
    schedule = nc.texp_plus_plus(RATES, decays, 0.9)
    np.testing.assert_allclose(
        nc.equivalent_weight_decay(schedule.log_lr, RATES, 0.9), decays, atol=1e-11
    )  # 1e-16 * |log lr| / lr


def test_a_growing_rate_is_constant_weight_decay():
    rho = 1.01**-0.5
    rates = nc.Exponential(0.1, growth=1.01).log_values(100)
    decays = nc.equivalent_weight_decay(rates, 0.1 * rho)
    np.testing.assert_allclose(decays, (1 - rho) / (0.1 * rho), atol=1e-11)  # 1e-16 * |log lr| / lr
    assert np.ptp(nc.equivalent_weight_decay(rates, 0.1)) > 1e-2  # control: another first rate


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nc.texp([], 5e-4), r"phases must hold at least one"),
        (lambda: nc.texp([(0.1,)], 5e-4), r"phases must be \(lr, steps\) pairs, got \(0.1,\) at index 0"),
        (lambda: nc.texp([(0.0, 3)], 5e-4), r"lr of phases\[0\] must be finite and > 0, got 0.0"),
        (lambda: nc.texp([(0.1, 0)], 5e-4), r"steps of phases\[0\] must be >= 1, got 0"),
        (
            lambda: nc.texp([(0.1, 3)], [5e-4, 1e-4]),
            r"weight_decay must be one value or one for each of 1 phases, got shape",
        ),
        (lambda: nc.texp([(0.1, 3)], 0.5, 0.9), r"beyond it the roots are complex"),
        (lambda: nc.equivalent_weight_decay([0.0], 0.0), r"lr must be > 0, got 0.0 at step 0"),
        (
            lambda: nc.equivalent_weight_decay([0.0, 800.0, 0.0], 0.1, 0.9),
            r"log_lr must be such that its weight decay is finite, got 0.0 at step 2",
        ),
        (lambda: nc.growth_factor(0.1, -1.0), r"lr\*weight_decay must lie in"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_exponential_lr_refuses_a_negative_weight_decay():
    with pytest.raises(ValueError, match=r"lr\*weight_decay must lie in \[0,"):
        nc.exponential_lr(0.1, -0.1, steps=3)
