"""Escape times against the bound."""

import math

import numpy as np
import pytest

from normcore.lab import ToyRun, escape_steps, theorem_3_1_bound, toy

LR, DECAY, EPSILON = 0.1, 0.02, 0.02
STARTS = np.repeat([3.0, 10.0, 30.0, 100.0], 16)


@pytest.fixture(scope="module")
def both():
    """Normalization with weight decay, sixteen runs from each start."""
    return toy(LR, DECAY, norm="sphere", steps=2500, runs=64, start_norm=STARTS)


def test_escape_within_the_bound_from_every_start(both):
    times = escape_steps(both, EPSILON)
    bounds = [theorem_3_1_bound(LR, DECAY, EPSILON, start) for start in STARTS]
    assert (times < bounds).all()
    # The norm decays by itself, so that each factor of the start costs ln(factor)/(lr*decay).
    means = times.reshape(4, 16).mean(axis=1)
    assert (means[3] - means[1]) * LR * DECAY == pytest.approx(math.log(10), rel=0.05)


@pytest.mark.parametrize(("norm", "decay"), [("sphere", 0.0), ("none", DECAY)])
def test_control_either_alone_does_not_escape(norm, decay, both):
    run = toy(LR, decay, norm=norm, steps=2500, runs=8, start_norm=10.0)
    assert np.isinf(escape_steps(run, 0.1)).all()
    assert np.isfinite(escape_steps(both, 0.1)[STARTS == 10.0]).all()


def test_escape_steps_against_a_loop():
    errors = np.random.default_rng(0).uniform(0, 0.1, (30, 5))
    errors[:, 4] = 0.0
    want = []
    for column in errors.T:
        want.append(next((t for t, e in enumerate(column) if e * math.pi > 0.29), math.inf))
    assert escape_steps(ToyRun(errors, errors), 0.29).tolist() == want
    assert want[4] == math.inf and len(set(want)) > 2


def test_bound_by_hand():
    # lr*wd = 0.002, 2 eps^2 = 0.0008; 64 * 9 * 0.02 * 10 / (0.1 * sqrt(98)) = 116.3696
    want = math.log(116.36957313) / (2 * 0.0012) + 9 * math.log(10)
    assert theorem_3_1_bound(LR, DECAY, EPSILON, 3.0) == pytest.approx(want, rel=1e-9)
    assert theorem_3_1_bound(LR, DECAY, EPSILON, 1e-3) == pytest.approx(9 * math.log(10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"epsilon": 0.1},
            r"epsilon must satisfy lr\*weight_decay > 2 epsilon\^2, got epsilon=0.1",
        ),
        ({"norm": 0.0}, "norm must be finite and > 0, got 0.0"),
        ({"delta": 0.0}, "delta must be finite and > 0, got 0.0"),
        ({"dim": 2}, "dim must be finite and > 2, got 2.0"),
    ],
)
def test_bad_input(change, message):
    settings = {"lr": LR, "weight_decay": DECAY, "epsilon": EPSILON, "norm": 1.0}
    with pytest.raises(ValueError, match=message):
        theorem_3_1_bound(**{**settings, **change})
