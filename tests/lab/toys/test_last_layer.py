"""The toy of Section 3: two numbers followed, against all m dimensions."""

import numpy as np
import pytest
from oracles_lab import numeric_gradient, toy_loss, toy_run

from normcore.lab import escape_steps, toy
from normcore.lab.toys.last_layer import toy_gradient

NORMS = ["none", "sphere", "batch"]


@pytest.mark.parametrize("norm", NORMS)
def test_gradient(norm):
    rng = np.random.default_rng(0)
    w, x = rng.uniform(0.5, 2.0, (2, 3)), rng.standard_normal((2, 3, 6))
    ours, side = toy_gradient(w, x, norm=norm)
    for i in range(3):
        # In 2+6 dimensions with unit vectors as the rest, the rest of the gradient is c itself.
        full = np.hstack([x[:, i].T, np.eye(6)])
        start = np.append(w[:, i], np.zeros(6))
        want = numeric_gradient(lambda v, full=full: toy_loss(v, full, norm), start)
        np.testing.assert_allclose(ours[:, i], want[:2], atol=1e-8)
        assert side[i] == pytest.approx(np.linalg.norm(want[2:]), rel=1e-6)
    radial = np.abs((ours * w).sum(axis=0))
    assert radial.min() > 1e-3 if norm == "none" else radial.max() < 1e-14


@pytest.mark.parametrize("norm", NORMS)
def test_two_numbers_have_the_law_of_all_dimensions(norm):
    settings = {"lr": 0.3, "weight_decay": 0.05, "norm": norm, "steps": 200, "dim": 12}
    few = toy(**settings, batch_size=20, runs=400)
    full = [toy_run(**settings, batch_size=20, seed=seed) for seed in range(12)]
    for ours, theirs in ((few.error, [f[0] for f in full]), (few.norm, [f[1] for f in full])):
        for window in (slice(10, 20), slice(60, 80), slice(100, 200)):
            one = ours[window].mean(axis=0)
            other = np.array([run[window].mean() for run in theirs])
            error = np.hypot(one.std() / np.sqrt(400), other.std(ddof=1) / np.sqrt(12))
            assert abs(one.mean() - other.mean()) < 4.5 * error + 1e-12


@pytest.mark.parametrize("norm", ["sphere", "batch"])
def test_either_is_fine_and_both_fail(norm):
    late, settings = slice(-500, None), {"lr": 0.1, "steps": 2500}
    norm_only = toy(weight_decay=0.0, norm=norm, **settings).error
    both = toy(weight_decay=0.02, norm=norm, **settings).error
    assert norm_only[late].mean() < 0.03
    assert norm_only[late].mean() < 0.9 * norm_only[800:1000].mean()  # still falling
    assert both[late].mean(axis=0).min() > 0.04  # in every run
    assert both[late].mean() == pytest.approx(both[1000:1500].mean(), rel=0.05)  # stays there
    decay_only = toy(weight_decay=0.02, norm="none", lr=0.1, steps=1000).error
    assert decay_only[late].mean() < 0.02


def test_norm_grows_without_decay_as_a_fourth_root_at_least():
    norms = toy(0.1, 0.0, norm="sphere", steps=2000, runs=4).norm
    assert (np.diff(norms, axis=0) > 0).all()
    fourth = norms**4
    assert (fourth[2000] - fourth[1000] > 0.5 * (fourth[1000] - fourth[0])).all()
    assert (np.diff(toy(0.1, 0.02, norm="sphere", steps=400, start_norm=9.0).norm, axis=0) < 0).any()


def test_the_start_is_uniform_on_the_sphere():
    cosine = np.cos(np.pi * toy(0.1, 0.0, norm="none", steps=1, dim=3, runs=4000).error[0])
    assert (cosine**2).mean() == pytest.approx(1 / 3, abs=0.02)  # four standard errors
    assert abs(cosine.mean()) < 0.04


def test_the_seed_is_everything():
    a, b, c = (toy(0.1, 0.02, norm="batch", steps=20, seed=s).error for s in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_a_run_that_leaves_the_floats_is_nan_from_there():
    run = toy(1e308, 0.0, norm="none", steps=400, dim=3, batch_size=3, runs=6)
    lost = [at for at in run.diverged_at if at is not None]
    assert len(lost) == 6 and len(set(lost)) > 1  # each in its own step
    for r, at in enumerate(run.diverged_at):
        assert np.isfinite(run.norm[:at, r]).all() and np.isfinite(run.error[:at, r]).all()
        assert np.isnan(run.norm[at:, r]).all() and np.isnan(run.error[at:, r]).all()
    assert np.isnan(escape_steps(run, 3.2)).all()
    assert toy(0.1, 0.0, norm="none", steps=4).diverged_at == [None] * 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "lr must be finite and > 0, got 0.0"),
        ({"weight_decay": 10.0}, r"weight_decay must be such that lr\*weight_decay < 1, got 10.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be finite and >= 0, got nan"),
        ({"dim": 2}, "dim must be >= 3, got 2"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"norm": "layer"}, r"norm must be one of \['batch', 'none', 'sphere'\], got 'layer'"),
        ({"start_norm": -1.0}, "start_norm must be finite and > 0, got -1.0"),
        ({"start_norm": [1.0, 2.0]}, "start_norm must be one number or 8 of them, got shape"),
    ],
)
def test_bad_input(change, message):
    settings = {"lr": 0.1, "weight_decay": 0.02, "norm": "sphere", "steps": 3}
    with pytest.raises(ValueError, match=message):
        toy(**{**settings, **change})
