"""Relaxation: the closed curve against runs, its limits, and the time to equilibrium."""

import math

import numpy as np
import pytest
import torch
from oracles_equilibrium import fourth_power_ode, noise_run

from normcore.norm_dynamics.equilibrium import equilibrium, relaxation, time_to_equilibrium

LR, WD = 0.1, 0.02
CHANGES = [(0.1, 1.0), (1.0, 0.1), (0.1, 10.0), (3.0, 0.5), (0.3, 2.0), (0.1, 0.0)]


def measured(kind, lr, wd, m, r, q, time):
    """Effective LR relative to its value before, at t = 0, ..., time-1, of a run in noise."""
    burn = 1 if m == 0 else 400
    start = equilibrium(lr, wd, m, optimizer=kind).norm
    run = noise_run(kind, lr, wd, m, steps=burn + time, changes={burn: (r * lr, q * wd)}, start=start)
    power = 1 if kind == "degree0" else 2
    return r * (run.norm_sq[burn - 1] / run.norm_sq[burn:]) ** (power / 2)


@pytest.mark.parametrize(("r", "q"), CHANGES)
@pytest.mark.parametrize(("kind", "m"), [("sgd", 0.0), ("degree0", 0.0)])
def test_the_curve_is_that_of_runs_to_first_order(kind, m, r, q):
    gaps = []
    for scale in (1.0, 0.25):
        lr, time = LR * scale, int(700 / scale)
        ours = relaxation(
            np.arange(time), lr_ratio=r, weight_decay_ratio=q, lr=lr, weight_decay=WD, optimizer=kind
        )
        gaps.append(np.abs(measured(kind, lr, WD, m, r, q, time) / ours - 1).max())
    assert gaps[0] < 4 * LR * WD * max(1.0, r * q)
    assert gaps[0] > 2.5 * gaps[1] or gaps[0] < 1e-9  # O(lr weight_decay): 4 times less


@pytest.mark.parametrize("kind", ["sgd", "nesterov"])
def test_with_momentum(kind):
    theirs = measured(kind, 0.01, 0.02, 0.9, 0.1, 1.0, 4000)
    options = dict(lr_ratio=0.1, lr=0.01, weight_decay=0.02)
    ours = relaxation(np.arange(4000), momentum=0.9, optimizer=kind, **options)
    assert np.abs(theirs / ours - 1)[40:].max() < 0.02  # the buffer settles within 1/(1-momentum) steps
    assert np.abs(theirs / relaxation(np.arange(4000), **options) - 1).max() > 0.2  # momentum forgotten


def test_decoupled_momentum_does_not_enter():
    options = dict(lr_ratio=0.1, lr=0.1, weight_decay=0.02, optimizer="adamw")
    assert relaxation(300.0, momentum=0.9, **options) == relaxation(300.0, **options)


@pytest.mark.parametrize(("r", "q"), CHANGES)
def test_against_the_differential_equation(r, q):
    gamma = 1 / (2 * LR * WD)  # S = 1
    for time in (1.0, 60.0, 900.0):
        moved = fourth_power_ode(gamma / r**2, r * LR, q * WD, 1.0, time)
        ours = relaxation(time, lr_ratio=r, weight_decay_ratio=q, lr=LR, weight_decay=WD)
        assert ours == pytest.approx(math.sqrt(gamma / moved), rel=1e-9)


def test_the_three_cases_of_the_paper():
    late = 10**7
    base = dict(lr=0.1, weight_decay=5e-4, momentum=0.9)
    k = 10.0
    for t in (0.0, 137.0, 4000.0):
        closed = (k + (k**2 - k) * math.exp(-4 * 5e-4 * t / k)) ** -0.5
        assert relaxation(t, lr_ratio=1 / k, **base) == pytest.approx(closed, rel=1e-13)
    for r, q, at_once, end in ((0.1, 1.0, 0.1, 0.1**0.5), (1.0, 0.1, 1.0, 0.1**0.5), (0.1, 10.0, 0.1, 1.0)):
        values = relaxation(np.array([-5.0, 0.0, late]), lr_ratio=r, weight_decay_ratio=q, **base)
        assert values == pytest.approx([1.0, at_once, end], rel=1e-12)
    # No change, no motion.
    assert relaxation(np.arange(-3, 50), **base) == pytest.approx(np.ones(53), rel=1e-12)


def test_without_decay_after_the_change():
    base = dict(lr=0.1, weight_decay=0.01)
    t = np.array([0.0, 10.0, 1e6])
    grown = relaxation(t, lr_ratio=0.5, weight_decay_ratio=0.0, **base)
    assert grown == pytest.approx((4 + 4 * 0.1 * 0.01 * t) ** -0.5, rel=1e-13)
    nearly = relaxation(t, lr_ratio=0.5, weight_decay_ratio=1e-12, **base)
    assert nearly == pytest.approx(grown, rel=1e-6)  # the limit is taken smoothly


def test_kinds_of_numbers():
    base = dict(lr_ratio=0.1, lr=0.1, weight_decay=0.01)
    assert type(relaxation(3, **base)) is float
    curve = relaxation(torch.arange(-1.0, 5.0, dtype=torch.float64), **base)
    assert torch.allclose(curve, torch.tensor(relaxation(np.arange(-1.0, 5.0), **base)), rtol=1e-14)
    assert relaxation(np.arange(4)[:, None], **{**base, "lr_ratio": np.array([0.1, 0.5])}).shape == (4, 2)


def steps_needed(kind, lr, wd, start, tolerance):
    """The first step at which a run is within the tolerance."""
    target = equilibrium(lr, wd, optimizer=kind).norm
    run = noise_run(kind, lr, wd, start=start * target, steps=2500)
    return int(np.argmax(np.abs(np.sqrt(run.norm_sq) / target - 1) <= tolerance))


@pytest.mark.parametrize("kind", ["sgd", "degree0"])
@pytest.mark.parametrize("start", [0.02, 0.5, 2.0, 30.0])
def test_time_to_equilibrium(kind, start):
    target = equilibrium(0.1, 0.02, optimizer=kind).norm
    ours = time_to_equilibrium(start * target, 0.1, 0.02, tolerance=0.1, optimizer=kind)
    assert steps_needed(kind, 0.1, 0.02, start, 0.1) == pytest.approx(ours, rel=0.01, abs=1.5)
    other = {"sgd": "degree0", "degree0": "sgd"}[kind]
    wrong = time_to_equilibrium(start * target, 0.1, 0.02, tolerance=0.1, optimizer=other)
    assert abs(wrong / ours - 1) > 0.05


def test_time_scales_as_one_over_the_intrinsic_rate():
    rates = np.array([1e-4, 1e-3, 1e-2])
    target = equilibrium(1.0, rates).norm
    times = time_to_equilibrium(2 * target, 1.0, rates)
    assert times * rates == pytest.approx(np.full(3, times[0] * rates[0]), rel=0.02)
    # A fixed start adds a logarithm.
    fixed = time_to_equilibrium(100.0, 1.0, rates)
    assert fixed[2] * rates[2] > 1.2 * fixed[0] * rates[0]


def test_two_e_folds():
    # gamma off by a factor 1 + 15 comes within 15/e^2 after 2/(4 lambda_e).
    target = equilibrium(0.1, 0.01).norm
    tolerance = (1 + 15 / math.e**2) ** 0.25 - 1
    assert time_to_equilibrium(2 * target, 0.1, 0.01, tolerance=tolerance) * 0.001 == pytest.approx(
        0.5, rel=1e-9
    )
    assert (
        time_to_equilibrium(1.04 * target, 0.1, 0.01) == 0.0 == time_to_equilibrium(0.96 * target, 0.1, 0.01)
    )


def test_the_time_is_finite_where_powers_are_not():
    for optimizer, p in (("sgd", 4), ("degree0", 2)):
        target = equilibrium(0.1, 0.01, optimizer=optimizer).norm
        near, far = (
            time_to_equilibrium(10.0**k * target, 0.1, 0.01, optimizer=optimizer) for k in (100, 200)
        )
        assert (far - near) * p * 0.001 == pytest.approx(p * 100 * math.log(10), rel=1e-9)
    # From far below the first step throws the norm as far above.
    target = equilibrium(0.1, 0.01).norm
    low = time_to_equilibrium(1e-200 * target, 0.1, 0.01)
    thrown = math.sqrt(1e-3 * (2 - 1e-3)) / 1e-200
    assert low == pytest.approx(1 + time_to_equilibrium(thrown * target, 0.1, 0.01), rel=1e-12)
    assert time_to_equilibrium(torch.tensor(1.0), 0.1, 0.01) >= 0


def test_dim_in_place_of_the_size_of_the_update():
    options = dict(optimizer="adamw", betas=(0.5, 0.999))
    ours = time_to_equilibrium(100.0, 1e-3, 0.1, dim=300, **options)
    assert ours == time_to_equilibrium(100.0, 1e-3, 0.1, grad_sq_norm=100.0, **options)
    assert ours != time_to_equilibrium(100.0, 1e-3, 0.1, **options)


def test_the_former_names_of_the_ratios():
    base = dict(lr=0.1, weight_decay=0.01)
    assert relaxation(9.0, ratio_lr=0.1, ratio_wd=3.0, **base) == relaxation(
        9.0, lr_ratio=0.1, weight_decay_ratio=3.0, **base
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr_ratio": 0.0}, "lr_ratio must be finite and > 0, got 0.0"),
        ({"weight_decay_ratio": -1.0}, "weight_decay_ratio must be finite and >= 0, got -1.0"),
        ({"lr": 0.0}, "lr must be finite and > 0, got 0.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be finite and > 0, got nan"),
        ({"momentum": 1.5}, r"momentum must be in \[0, 1\), got 1.5"),
        ({"t": [1.0, float("nan")]}, "t must be finite, got nan"),
        ({"optimizer": "lion"}, "optimizer must be one of"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        relaxation(**{"t": 1.0, "lr": 0.1, "weight_decay": 0.01, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": 0.0}, "norm must be finite and > 0, got 0.0"),
        ({"tolerance": 1.0}, r"tolerance must be finite and > 0 and < 1, got 1.0"),
        ({"weight_decay": 0.0}, "weight_decay must be finite and > 0, got 0.0"),
    ],
)
def test_bad_input_time(change, message):
    with pytest.raises(ValueError, match=message):
        time_to_equilibrium(**{"norm": 1.0, "lr": 0.1, "weight_decay": 0.01, **change})
