"""Schedules as values, against torch's own schedulers."""

import math

import numpy as np
import pytest
import torch

import normcore as nc


def torch_values(make, lr, steps):
    """The rates a torch scheduler sets."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr)
    scheduler = make(optimizer)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_step_decay_equals_multistep_lr():
    expected = torch_values(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 7], 0.1), 0.4, 10)
    np.testing.assert_allclose(nc.StepDecay(0.4, (3, 7)).values(10), expected, rtol=1e-14)


def test_cosine_equals_cosine_annealing_lr():
    expected = torch_values(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10), 0.4, 10)
    np.testing.assert_allclose(nc.Cosine(0.4, 10).values(10), expected, rtol=1e-13)
    assert nc.Cosine(0.4, 10)(25) == 0.0 and nc.Cosine(0.4, 10).log(10) == -math.inf


def test_exponential_equals_exponential_lr():
    expected = torch_values(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 1.02), 0.4, 50)
    np.testing.assert_allclose(nc.Exponential(0.4, 1.02).values(50), expected, rtol=1e-13)
    assert nc.Exponential(0.1, 1.001).log(10**7) == pytest.approx(
        math.log(0.1) + 1e7 * math.log(1.001), rel=1e-15
    )


def test_phases_rebuild_the_values():
    schedule = nc.StepDecay(0.1, (30, 80))
    phases = schedule.phases(60)
    assert [n for _, n in phases] == [30, 30]
    np.testing.assert_array_equal(
        np.repeat([lr for lr, _ in phases], [n for _, n in phases]), schedule.values(60)
    )


def test_log_agrees_with_the_value():
    for schedule in (nc.Constant(0.1), nc.StepDecay(0.1, (2,)), nc.Cosine(0.1, 9), nc.Exponential(0.1, 1.5)):
        np.testing.assert_allclose(np.exp(schedule.log_values(6)), schedule.values(6), rtol=1e-14)


def test_frozen_and_equal():
    assert nc.Constant(0.1) == nc.Constant(0.1) != nc.Constant(0.2)
    with pytest.raises(AttributeError):
        nc.Constant(0.1).lr = 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nc.Constant(-1.0), r"lr must be finite and >= 0, got -1.0"),
        (lambda: nc.Constant(math.nan), r"lr must be finite and >= 0, got nan"),
        (lambda: nc.StepDecay(0.1, (5, 5)), r"milestones must increase from above 0, got \(5, 5\)"),
        (lambda: nc.StepDecay(0.1, (5,), factor=0.0), r"factor must be finite and > 0, got 0.0"),
        (lambda: nc.StepDecay(1e300, (5,), factor=1e10), r"factor must keep every value in the float range"),
        (lambda: nc.Cosine(0.1, 0), r"steps must be >= 1, got 0"),
        (lambda: nc.Exponential(0.0, 1.1), r"lr must be finite and > 0, got 0.0"),
        (lambda: nc.Exponential(0.1, math.inf), r"growth must be finite and > 0, got inf"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_are_exact_and_times_between_them_are_taken():
    late = 2**53 + 1  # no float
    schedule = nc.StepDecay(1.0, (late,), factor=0.5)
    assert [schedule(late - 1), schedule(late), schedule(10**400)] == [1.0, 0.5, 0.5]
    assert nc.Exponential(1.0, 4.0)(0.5) == pytest.approx(2.0, rel=1e-15)
    assert nc.Cosine(1.0, 2)(0.5) == pytest.approx((1 + math.sqrt(0.5)) / 2, rel=1e-15)


@pytest.mark.parametrize(
    ("t", "error"),
    [(-1, ValueError), (-0.5, ValueError), (math.inf, ValueError), (math.nan, ValueError)]
    + [(t, TypeError) for t in ("1", None, True, 1j)],
)
def test_no_step(t, error):
    for schedule in (nc.Constant(0.1), nc.StepDecay(0.1, (2,)), nc.Cosine(0.1, 9), nc.Exponential(0.1, 1.5)):
        for ask in (schedule, schedule.log):
            with pytest.raises(error, match="t must be"):
                ask(t)
