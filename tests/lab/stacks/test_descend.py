"""Descent of many nets is descent of each; what diverges is recorded and disturbs nobody."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from normcore.lab.stacks.descend import descend, half_mse, softmax_loss
from normcore.lab.stacks.stack import WideStack, wide_curvature

G = torch.Generator().manual_seed(0)
X = torch.randn(12, 5, generator=G, dtype=torch.float64)
Y = torch.randn(12, 2, generator=G, dtype=torch.float64)
F64 = {"dtype": torch.float64}


def alone(seed, lr, steps, activation="tanh"):
    """One net by torch.optim.SGD; losses before each step and after the last."""
    net = WideStack((5, 16, 2), seeds=[seed], activation=activation, **F64)
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=lr), []
    for _ in range(steps + 1):
        optimizer.zero_grad()
        loss = sum((net(X)[0][a] - Y[a]).pow(2).sum() for a in range(12)) / 24
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses


def test_each_run_is_plain_gradient_descent():
    nets = WideStack((5, 16, 2), seeds=[0, 1, 1], activation="tanh", **F64)
    probes = {"output": lambda n: n(X)}
    run = descend(nets, X, Y, lr=[0.1, 0.1, 0.3], steps=20, probes=probes, every=8)
    for r, (seed, lr) in enumerate([(0, 0.1), (1, 0.1), (1, 0.3)]):
        np.testing.assert_allclose(run.loss[:, r], alone(seed, lr, 20), rtol=1e-10)
    assert run.step.tolist() == [0, 8, 16, 20] and run["output"].shape == (4, 3, 12, 2)
    assert run.diverged_at.tolist() == [-1, -1, -1]


def test_a_diverging_run_stops_and_disturbs_nobody():
    rates = [0.1, 1e3, 0.1]
    nets = WideStack((5, 16, 2), seeds=[0, 0, 1], activation="identity", **F64)
    run = descend(nets, X, Y, lr=rates, steps=30)
    stop = run.diverged_at[1]
    assert 0 < stop < 30 and run.diverged_at.tolist() == [-1, stop, -1]
    assert np.isinf(run.loss[stop:, 1]).all() and np.isfinite(run.loss[:stop, 1]).all()
    assert all(torch.isfinite(w).all() for w in nets.weights)
    np.testing.assert_allclose(run.loss[:, 0], alone(0, 0.1, 30, "identity"), rtol=1e-9)


def test_minibatches_without_replacement():
    def losses(**options):
        nets = WideStack((5, 16, 2), seeds=[0], activation="tanh", **F64)
        return descend(nets, X, Y, lr=0.1, steps=6, **options).loss

    assert np.array_equal(losses(batch_size=4, seed=1), losses(batch_size=4, seed=1))
    assert not np.array_equal(losses(batch_size=4, seed=1), losses(batch_size=4, seed=2))
    np.testing.assert_allclose(losses(batch_size=12), losses(), rtol=1e-10)  # one batch is everything


def test_losses_against_loops():
    output = torch.randn(2, 12, 3, generator=G, dtype=torch.float64)
    target = torch.eye(3, **F64)[torch.arange(12) % 3]
    for r in range(2):
        total = sum(float((output[r, a, k] - target[a, k]) ** 2) for a in range(12) for k in range(3))
        assert half_mse(output, target)[r].item() == pytest.approx(total / 24, rel=1e-12)
        expected = cross_entropy(output[r], target.argmax(dim=1)).item()
        assert softmax_loss(output, target)[r].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("c", "grows"), [(1.9, False), (2.5, True), (4.6, True)])
def test_the_edges_of_a_linear_net(c, grows):
    x = torch.randn(20, 10, generator=torch.Generator().manual_seed(3), **F64)
    y = torch.sign(x[:, :1])
    nets = WideStack((10, 1024, 1), seeds=range(3), activation="identity", **F64)
    curvature = wide_curvature(nets, x, iterations=400).detach()
    run = descend(nets, x, y, lr=c / curvature.numpy(), steps=60)
    peak = run.loss.max(axis=0) / run.loss[0]
    assert (peak > 2).all() if grows else (peak < 1.001).all()
    assert (run.diverged_at >= 0).all() == (c > 4)


def test_bad_input():
    nets = WideStack((5, 16, 2), seeds=[0, 1], **F64)
    with pytest.raises(ValueError, match=r"lr must be a number or 2 of them, got shape \(3,\)"):
        descend(nets, X, Y, lr=[0.1] * 3, steps=1)
    with pytest.raises(ValueError, match=r"lr must be > 0 and finite, got \[0.1, 0.0\]"):
        descend(nets, X, Y, lr=[0.1, 0.0], steps=1)
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        descend(nets, X, Y, lr=0.1, steps=0)
    with pytest.raises(ValueError, match="batch_size must be between 1 and 12, got 13"):
        descend(nets, X, Y, lr=0.1, steps=1, batch_size=13)
    with pytest.raises(KeyError, match=r"no probe named 'f'; the run recorded \[\]"):
        descend(nets, X, Y, lr=0.1, steps=1)["f"]
    assert math.isinf(descend(nets, X, Y, lr=[0.1, 1e9], steps=5).loss[-1, 1])
