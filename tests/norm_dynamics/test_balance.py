"""Rho: exact without a noise model, from gradients and from movements, and wrong where a piece is missing."""

import numpy as np
import pytest
import torch
from oracles_equilibrium import noise_run

from normcore.norm_dynamics.equilibrium import rho

LR, WD = 0.05, 0.3
MEAN = np.array([1.0, 0.5, 0, 0, 0, 0])


def window(m, *, kind="sgd", start=1.0, steps=8000, skip=500, dim=6):
    """Means over a run whose gradients have a mean direction, correlate with the buffer and vary in size."""
    run = noise_run(kind, LR, WD, m, start=start, steps=steps, dim=dim, orthogonal=False, mean=MEAN, seed=3)
    return {
        name: getattr(run, name)[skip:].mean() for name in ("norm_sq", "moved_sq", "grad_sq", "overlap")
    }, run


@pytest.mark.parametrize("m", [0.0, 0.5, 0.9])
def test_one_whatever_the_noise(m):
    means, _ = window(m)
    given = {"norm_sq": means["norm_sq"]}
    assert rho(LR, WD, m, **given, moved_sq=means["moved_sq"]) == pytest.approx(1.0, abs=4e-3)
    both = {"grad_sq": means["grad_sq"], "overlap": means["overlap"]}
    assert rho(LR, WD, m, **given, **both) == pytest.approx(1.0, abs=4e-3)
    if m:  # the gradients here are not zero-mean: the overlap with the buffer is needed
        assert abs(rho(LR, WD, m, **given, grad_sq=means["grad_sq"]) - 1) > 0.02
        assert abs(rho(LR, WD, 0.0, **given, grad_sq=means["grad_sq"]) - 1) > 0.3  # momentum forgotten


@pytest.mark.parametrize("m", [0.0, 0.9])
def test_exact_up_to_the_drift_of_the_norm(m):
    # Far from equilibrium the sum over steps of the recursion leaves the ends of the window only.
    _, run = window(m, start=4.0, steps=80, skip=0)
    r, d = run.norm_sq, run.moved_sq
    h = LR * WD
    drift = (r[-1] - r[1] - m * (r[-2] - r[0]) - m * (d[0:-2].sum() - d[1:-1].sum())) / (
        2 * h * r[1:-1].sum()
    )
    ours = rho(LR, WD, m, norm_sq=r[1:-1].mean(), moved_sq=d[1:-1].mean())
    assert ours - 1 == pytest.approx(drift, abs=1e-12)
    assert ours < 0.9  # the norm is falling
    low = noise_run("sgd", LR, WD, m, start=0.3, steps=12, orthogonal=False)
    assert rho(LR, WD, m, norm_sq=low.norm_sq.mean(), moved_sq=low.moved_sq.mean()) > 1.1  # growing


def test_without_momentum_the_two_forms_are_one():
    means, _ = window(0.0, steps=300, skip=0)
    one = rho(LR, WD, norm_sq=means["norm_sq"], moved_sq=means["moved_sq"])
    other = rho(LR, WD, norm_sq=means["norm_sq"], grad_sq=means["grad_sq"])
    assert one - 1 == pytest.approx((other - 1) * (1 - LR * WD / 2), abs=1e-12)
    assert other == pytest.approx(LR * means["grad_sq"] / ((2 - LR * WD) * WD * means["norm_sq"]), rel=1e-14)


def test_decoupled_decay_is_not_coupled():
    means, _ = window(0.9, kind="sgdw")
    assert abs(rho(LR, WD, 0.9, norm_sq=means["norm_sq"], moved_sq=means["moved_sq"]) - 1) > 0.3


def test_kinds_of_numbers():
    assert rho(torch.tensor(0.1), 0.01, norm_sq=4.0, grad_sq=0.7996) == pytest.approx(1.0, rel=1e-6)
    assert rho(0.1, 0.01, norm_sq=np.full(3, 4.0), moved_sq=0.008).shape == (3,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"moved_sq": 1.0}, TypeError, "one of grad_sq and moved_sq must be given, got both"),
        ({"grad_sq": None}, TypeError, "one of grad_sq and moved_sq must be given, got neither"),
        ({"grad_sq": -1.0}, ValueError, "grad_sq must be finite and >= 0, got -1.0"),
        (
            {"grad_sq": None, "moved_sq": float("nan")},
            ValueError,
            "moved_sq must be finite and >= 0, got nan",
        ),
        ({"overlap": float("nan")}, ValueError, "overlap must be finite, got nan"),
        ({"lr": 0.0}, ValueError, "lr must be finite and > 0, got 0.0"),
        (
            {"lr": 1e-200, "weight_decay": 1e-200},
            ValueError,
            r"lr\*weight_decay neither vanishes nor overflows",
        ),
        ({"norm_sq": 0.0}, ValueError, "norm_sq must be finite and > 0, got 0.0"),
        ({"weight_decay": 0.0}, ValueError, "weight_decay must be finite and > 0, got 0.0"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        rho(**{"lr": 0.1, "weight_decay": 0.01, "norm_sq": 1.0, "grad_sq": 1.0, **change})
