"""The valley against autograd, and what weight decay does to it."""

import numpy as np
import pytest
import torch

from normcore.lab.toys import spikes, valley


def by_autograd(lr, weight_decay, steps, start):
    """The same descent with torch."""
    w, path = torch.tensor(start, dtype=torch.float64), []
    for _ in range(steps + 1):
        path.append(w.tolist())
        w.requires_grad_(True)
        (g,) = torch.autograd.grad(w[0] ** 2 / (w @ w), w)
        w = w.detach() * (1 - lr * weight_decay) - lr * g
    return np.array(path)


def test_equals_autograd():
    run = valley(0.1, 0.3, steps=60, start=(0.3, 0.8))
    path = by_autograd(0.1, 0.3, 60, (0.3, 0.8))
    np.testing.assert_allclose(np.stack([run.x, run.y], axis=1), path, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(run.loss, path[:, 0] ** 2 / (path**2).sum(axis=1), rtol=1e-9, atol=1e-15)


def test_stability_is_lr_times_the_curvature_across():
    run, h = valley(0.1, 0.0, steps=1, start=(0.0, 0.7)), 1e-4
    loss = [(h * s) ** 2 / ((h * s) ** 2 + 0.49) for s in (-1, 0, 1)]
    curvature = (loss[0] - 2 * loss[1] + loss[2]) / h**2
    assert run.stability[0] == pytest.approx(0.1 * curvature, rel=1e-5)


@pytest.mark.parametrize("lr", [0.1, 0.01])
def test_decay_makes_it_rise_again_and_again_at_the_stability_edge(lr):
    decay = 0.02 / lr
    run = valley(lr, decay, steps=2000)
    found = spikes(run.loss, rise=100.0)
    assert len(found) > 10
    first = int(np.argmax(np.diff(run.loss) > 0))
    assert 1.9 < run.stability[first] < 2.2
    calm = valley(lr, 0.0, steps=2000)  # control
    assert len(spikes(calm.loss + 1e-300)) == 0 and (np.diff(calm.loss) <= 0).all()


def test_spikes_are_counted_once():
    assert spikes(np.array([1.0, 0.9, 0.8])).tolist() == []
    assert spikes(np.array([1.0, 2.5, 3.0, 2.0, 1.4, 2.9])).tolist() == [1, 5]
    assert spikes(np.array([1.0, 2.5, 3.0, 2.0, 1.6, 2.9])).tolist() == [1]  # never below half its peak


def test_a_descent_into_the_origin_ends_as_nan():
    run = valley(
        0.1, 5.0, steps=2000, start=(0.0, 0.7)
    )  # halved by every step, until its square is no number
    at = run.diverged_at
    assert 200 < at < 300 and run.y[at - 1] == 0.7 * 0.5 ** (at - 1)
    assert np.isfinite(run.stability[:at]).all() and len(run.x) == 2001
    assert np.isnan(run.y[at:]).all() and np.isnan(run.loss[at:]).all()
    assert valley(0.1, 0.3, steps=60).diverged_at is None


def test_bad_input():
    with pytest.raises(ValueError, match="lr must be finite and > 0, got 0"):
        valley(0, 0.1, steps=1)
    with pytest.raises(ValueError, match=r"weight_decay must be such that lr\*weight_decay < 1, got 10.0"):
        valley(0.1, 10.0, steps=1)
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        valley(0.1, 0.1, steps=0)
    with pytest.raises(ValueError, match=r"start must have x\^2 \+ y\^2 in .*, got \(0.0, 0.0\)"):
        valley(0.1, 0.1, steps=1, start=(0.0, 0.0))
    with pytest.raises(ValueError, match="rise must be finite and > 1, got 1"):
        spikes(np.ones(3), rise=1)
