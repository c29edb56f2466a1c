"""The map from schedules with weight decay to schedules without it."""

import math

import numpy as np
import pytest
from helpers import EXACT, TRAJECTORY, VISIBLE
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import RandomLoss, decayed_run, direction_gap, free_run, paper_recursion, scalar_run

import normcore as nc

STEPS = 200
RNG = np.random.default_rng(7)
RATES = 0.1 * RNG.uniform(0.2, 2.0, STEPS)
DECAYS = 1e-2 * RNG.uniform(0.0, 2.0, STEPS)
MOMENTA = RNG.uniform(0.6, 0.9, STEPS)
STEP_DECAY = nc.StepDecay(0.1, milestones=(70, 140)).values(STEPS)

CASES = {
    "plain": dict(lr=0.1, weight_decay=1e-2),
    "momentum": dict(lr=0.1, weight_decay=1e-2, momentum=0.9),
    "step decay": dict(lr=STEP_DECAY, weight_decay=1e-2, momentum=0.9),
    "anything": dict(lr=RATES, weight_decay=DECAYS, momentum=MOMENTA),
    "stationary": dict(lr=0.1, weight_decay=1e-2, momentum=0.9, start="stationary"),
    "dampening": dict(lr=RATES, weight_decay=DECAYS, momentum=0.8, dampening=0.3),
    "nesterov": dict(lr=RATES, weight_decay=DECAYS, momentum=0.9, nesterov=True),
    "nesterov with momentum schedule": dict(lr=RATES, weight_decay=DECAYS, momentum=MOMENTA, nesterov=True),
    "decoupled": dict(lr=RATES, weight_decay=DECAYS, momentum=0.9, decoupled=True),
    "decoupled nesterov": dict(lr=RATES, weight_decay=DECAYS, momentum=0.9, decoupled=True, nesterov=True),
    "beyond the critical point": dict(lr=0.1, weight_decay=0.08, momentum=0.9),
    "far beyond it, nesterov": dict(lr=0.1, weight_decay=1.0, momentum=0.9, nesterov=True),
    "rates of zero": dict(lr=np.where(np.arange(STEPS) % 3 == 0, 0.0, 0.1), weight_decay=1e-2, momentum=0.9),
    "negative decay": dict(lr=0.1, weight_decay=-1e-2, momentum=0.9),
}


def both_runs(case, *, buffered=True, **wrong):
    """The run with weight decay and the run without it at the equivalent schedule; `wrong` overrides a part
    of the latter."""
    loss = RandomLoss()
    buffer = loss.start()[1] if buffered else None
    schedule = nc.equivalent_schedule(**case, steps=STEPS)
    shared = {key: case[key] for key in ("dampening", "nesterov") if key in case}
    settings_ = {key: value for key, value in case.items() if key not in ("start", "lr", "weight_decay")}
    original, buffers = decayed_run(loss, STEPS, case["lr"], case["weight_decay"], buffer=buffer, **settings_)
    parts = dict(
        lr=schedule.lr,
        momentum=schedule.momentum,
        before=schedule.gain_before,
        after=schedule.gain_after,
        corrections=schedule.corrections,
    )
    free = free_run(loss, **{**parts, **wrong}, buffer=buffer, **shared)
    return schedule, (original, buffers), free


@pytest.mark.parametrize("name", CASES)
def test_both_runs_share_their_directions(name):
    _, (original, _), (free, _) = both_runs(CASES[name])
    assert direction_gap(original, free) < TRAJECTORY


@pytest.mark.parametrize("name", CASES)
def test_state_maps_connect_the_runs_at_every_step(name):
    schedule, (original, buffers), (free, free_buffers) = both_runs(CASES[name])
    for t in (0, 1, 57, STEPS - 1):
        correction = schedule.corrections.get(t, 0.0) * free[t]
        theta, buf = schedule.to_wd_free(original[t], buffers[t], t)
        np.testing.assert_allclose(theta, free[t], rtol=TRAJECTORY, atol=TRAJECTORY * np.linalg.norm(free[t]))
        scale = np.linalg.norm(free_buffers[t]) + np.linalg.norm(correction) + 1e-300
        np.testing.assert_allclose(
            buf, free_buffers[t] + correction, rtol=0, atol=1e-8 * scale
        )  # the radial parts nearly cancel when overcritical
        back = schedule.from_wd_free(theta, buf, t)
        np.testing.assert_allclose(back[0], original[t], rtol=EXACT)
        np.testing.assert_allclose(
            back[1],
            buffers[t],
            atol=EXACT * (np.linalg.norm(original[t]) + np.linalg.norm(buffers[t])),
            rtol=EXACT,
        )


def test_controls_each_part_of_the_schedule_is_needed():
    ones = np.ones(STEPS)
    free = nc.equivalent_schedule(**CASES["momentum"], steps=STEPS)
    wrong = {
        "plain": dict(lr=0.1 * (1 - 1e-3) ** (-2.0 * np.arange(STEPS))),  # exponent -2t in place of -2t-1
        "momentum": dict(lr=0.1 * np.exp(-2 * free.log_scale[:-1])),
        "stationary": dict(corrections={}),
        "nesterov": dict(before=ones),
        "decoupled": dict(after=ones),
        "dampening": dict(lr=nc.equivalent_schedule(RATES, DECAYS, 0.8).lr),
        "beyond the critical point": dict(corrections={}),
    }
    for name, part in wrong.items():
        _, (original, _), (free_weights, _) = both_runs(CASES[name], **part)
        assert direction_gap(original, free_weights) > VISIBLE, name


def test_zero_buffer_needs_nothing_but_the_rates():
    schedule, (original, _), (free, _) = both_runs(
        CASES["anything"], buffered=False, before=None, after=None, corrections=None
    )
    assert not schedule.corrections
    assert direction_gap(original, free) < TRAJECTORY


unit = st.floats(0.0, 1.0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(1e-6, 10.0), unit, st.floats(0.0, 0.95), st.floats(0.0, 0.9)),
        min_size=1,
        max_size=60,
    )
)
def test_agrees_with_sixty_digits(rows):
    lr, fraction, momentum, dampening = np.array(rows).T
    # lr * wd / (1-momentum) stays small enough for x to stay positive over the run, so that no gauge reset hides the comparison
    decay = 0.5 * fraction * (1 - np.sqrt(momentum.max())) ** 2 / lr.max()
    schedule = nc.equivalent_schedule(lr, decay, momentum, dampening=dampening)
    assert not schedule.corrections
    log_lr, log_x = scalar_run(lr, decay, momentum, dampening, len(lr))
    for ours, exact in zip([*schedule.log_lr, *schedule.log_scale], [*log_lr, *log_x], strict=True):
        assert abs(ours - exact) <= 1e-12 * max(
            abs(exact), 1e-3
        )  # below 1e-3 the log is itself a difference of O(1) numbers


def test_long_run_agrees_with_sixty_digits():
    steps = 5_000
    schedule = nc.equivalent_schedule(0.1, 5e-4, 0.9, steps=steps)
    log_lr, log_x = scalar_run(0.1, 5e-4, 0.9, 0.0, steps)
    assert abs(schedule.log_lr[-1] / log_lr[-1] - 1) < 1e-12
    assert abs(schedule.log_scale[-1] / log_x[-1] - 1) < 1e-12


def test_rates_beyond_the_floats_stay_finite_in_logarithms():
    schedule = nc.equivalent_schedule(0.1, 5e-3, 0.9, steps=100_000)
    assert np.isfinite(schedule.log_lr).all() and np.isfinite(schedule.buffer_ratio).all()
    closed_form = -2 * math.log(nc.growth_factor(0.1, 5e-3, 0.9))
    assert (schedule.log_lr[-1] - schedule.log_lr[-2]) == pytest.approx(closed_form, rel=1e-9)
    assert schedule.log_lr[-1] / math.log(10) > 400
    with pytest.raises(OverflowError, match="lr exceeds the float64 range from step 67658 on"):
        _ = schedule.lr
    shrunk = nc.equivalent_schedule(0.1, 2e-2, 0.9, steps=50_000)
    with pytest.raises(OverflowError, match="x_t underflows at t=50000"):
        shrunk.to_wd_free(1.0, 0.0, 50_000)


def test_agrees_with_the_paper_recursion():
    schedule = nc.equivalent_schedule(STEP_DECAY, DECAYS, 0.9)
    np.testing.assert_allclose(schedule.log_lr, paper_recursion(STEP_DECAY, DECAYS, 0.9, STEPS), atol=1e-12)


def test_degree_zero_rates_and_gains():
    schedule = nc.equivalent_schedule(RATES, DECAYS, decoupled=True, degree=0)
    x = np.cumprod(np.concatenate([[1.0], 1 - RATES * DECAYS]))
    np.testing.assert_allclose(schedule.lr, RATES / x[1:], rtol=EXACT)
    np.testing.assert_allclose(schedule.gain_after, 1 - RATES * DECAYS, rtol=EXACT)


def test_critical_point_separates_corrections():
    critical = (1 - math.sqrt(0.9)) ** 2 / 0.1
    below = nc.equivalent_schedule(0.1, 0.999 * critical, 0.9, steps=5000)
    above = nc.equivalent_schedule(0.1, 1.2 * critical, 0.9, steps=5000)
    assert not below.corrections and len(above.corrections) > 10


def test_schedule_is_frozen():
    schedule = nc.equivalent_schedule(0.1, 1e-2, 0.9, steps=3)
    with pytest.raises(ValueError, match="read-only"):
        schedule.log_lr[0] = 0.0
    with pytest.raises(AttributeError):
        schedule.log_lr = schedule.log_scale
    with pytest.raises(TypeError):
        schedule.corrections[0] = 1.0
    assert "steps=3" in repr(schedule)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            dict(lr=-0.1, weight_decay=0.0, steps=2),
            ValueError,
            r"lr must be finite and >= 0, got -0.1 at step 0",
        ),
        (
            dict(lr=[0.1, math.nan], weight_decay=0.0),
            ValueError,
            r"lr must be finite and >= 0, got nan at step 1",
        ),
        (
            dict(lr=[0.1, math.inf], weight_decay=0.0),
            ValueError,
            r"lr must be finite and >= 0, got inf at step 1",
        ),
        (dict(lr=[0.1], weight_decay=math.nan), ValueError, r"weight_decay must be finite, got nan"),
        (
            dict(lr=[0.1], weight_decay=0.0, momentum=1.0),
            ValueError,
            r"momentum must be in \[0, 1\), got 1.0",
        ),
        (
            dict(lr=[0.1], weight_decay=0.0, momentum=-0.1),
            ValueError,
            r"momentum must be in \[0, 1\), got -0.1",
        ),
        (
            dict(lr=[0.1], weight_decay=0.0, dampening=1.5),
            ValueError,
            r"dampening must be in \[0, 1\), got 1.5",
        ),
        (
            dict(lr=[0.1], weight_decay=10.0),
            ValueError,
            r"weight_decay must be such that 1 - lr\*weight_decay > 0, got 10.0 at step 0",
        ),
        (dict(lr=[0.1, 0.1], weight_decay=[0.0]), ValueError, r"lengths must agree, got"),
        (dict(lr=0.1, weight_decay=0.0), ValueError, r"steps must be given when"),
        (dict(lr=0.1, weight_decay=0.0, steps=0), ValueError, r"steps must be >= 1, got 0"),
        (dict(lr=0.1, weight_decay=0.0, steps=2.5), TypeError, r"steps must be an integer, got 2.5"),
        (
            dict(lr="fast", weight_decay=0.0),
            TypeError,
            r"lr must be a number or an array of numbers, got 'fast'",
        ),
        (dict(lr=[[0.1]], weight_decay=0.0), ValueError, r"one-dimensional array, got shape \(1, 1\)"),
        (
            dict(lr=[0.1], weight_decay=0.0, start="middle"),
            ValueError,
            r"start must be one of .*, got 'middle'",
        ),
        (
            dict(lr=[0.1], weight_decay=0.0, degree=0),
            ValueError,
            r"degree must be 1 unless decoupled=True, got 0",
        ),
        (dict(lr=[0.1], weight_decay=0.0, degree=3), ValueError, r"degree must be 0, 1 or 2, got 3"),
        (
            dict(lr=[0.1], weight_decay=0.0, nesterov=True, dampening=0.1),
            ValueError,
            r"dampening must be 0 when nesterov=True",
        ),
        (
            dict(lr=[0.1], weight_decay=0.0, nesterov=True, start="stationary"),
            ValueError,
            r"start must be 'zero' when nesterov",
        ),
        (
            dict(lr=[0.1], weight_decay=6.0, momentum=0.9, nesterov=True),
            ValueError,
            r"such that lr\*weight_decay\*\(1\+momentum\) < 1",
        ),
        (
            dict(lr=[0.1], weight_decay=1.0, momentum=0.9, start="stationary"),
            ValueError,
            r"beyond it the roots are complex",
        ),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        nc.equivalent_schedule(**arguments)


def test_state_maps_refuse_other_steps():
    schedule = nc.equivalent_schedule(0.1, 1e-2, steps=3)
    with pytest.raises(ValueError, match="t must be between 0 and 3, got 4"):
        schedule.to_wd_free(1.0, None, 4)
