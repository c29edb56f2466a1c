"""The monitor follows the sharpness of a run at two products a reading, and finds an eigenvalue that overtakes."""

import copy

import pytest
import torch
from curvature_nets import labels, make, same_state, state_of
from oracles_curvature import dense_hessian
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from normcore import lab
from normcore.curvature.hessian import SharpnessMonitor


def follow(monitor, kind="batch", steps=25):
    """Train; the readings, the dense values and the products of each reading."""
    model, x = make(kind)
    batch = x, labels(x)[0]
    monitor = monitor(batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    read, exact, products = [], [], []
    for _ in range(steps):
        before = state_of(model)
        read.append(monitor(model))
        assert same_state(before, state_of(model))
        products.append(monitor.last.matvecs)
        exact.append(float(torch.linalg.eigvalsh(dense_hessian(model, cross_entropy, batch))[-1]))
        optimizer.zero_grad()
        cross_entropy(model(x), batch[1]).backward()
        optimizer.step()
    return torch.tensor(read), torch.tensor(exact), products


def test_follows_a_run_for_two_products_a_reading():
    read, exact, products = follow(lambda batch: SharpnessMonitor(cross_entropy, batch, tol=1e-3))
    assert max(products[1:20]) <= 2 and products[0] > 2 and max(products) <= 30
    assert float((read / exact - 1).abs().max()) < 0.02 and float((read - exact).max()) < 1e-6
    assert float(exact.max() / exact.min()) > 1.2  # there was something to follow
    model, x = make("batch")
    lazy = float(SharpnessMonitor(cross_entropy, (x, labels(x)[0]), tol=1e-9)(model))
    assert float((exact - lazy).abs().max()) > 0.05 * lazy


class Quadratic(nn.Module):
    """A loss with curvatures set by hand."""

    def __init__(self, curvatures):
        super().__init__()
        self.w = nn.Parameter(torch.ones(len(curvatures), dtype=torch.float64))
        self.curvatures = torch.tensor(curvatures, dtype=torch.float64)

    def forward(self, x):
        return (self.curvatures * self.w**2).sum() / 2


def test_an_overtaking_eigenvalue_is_found_at_the_refresh():
    monitor = SharpnessMonitor(lambda f, y: f, (None, None), refresh=3, tol=1e-8, matvecs=1)
    assert abs(monitor(Quadratic([3.0, 1.0, 0.5])) - 3) < 1e-6
    after = Quadratic([3.0, 1.0, 7.0])
    missed = monitor(after)
    assert missed < 3.1  # one product along the old vector cannot see it
    monitor(after)
    assert abs(monitor(after) - 7) < 1e-6


def test_state_goes_on():
    model, x = make("layer")
    batch = x, labels(x)[1]
    whole = SharpnessMonitor(mse_loss, batch)
    whole(model)
    resumed = SharpnessMonitor(mse_loss, batch)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert resumed(model) == whole(model) and resumed.last.matvecs <= 2
    with pytest.raises(ValueError, match="state must be the state_dict of a SharpnessMonitor, got .*vector"):
        resumed.load_state_dict({"readings": 1})


def test_a_run_that_diverges_keeps_its_history():
    model, x = make("relu")
    monitor, target = SharpnessMonitor(mse_loss, (x, labels(x)[1])), labels(x)[1]
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    history = lab.train(
        model, optimizer, [(x, target)] * 400, loss_fn=mse_loss, probes={"sharpness": monitor}
    )
    read = history["sharpness"]
    assert history.diverged_at is not None and len(read) == len(history.step)
    assert torch.tensor(read[:2]).isfinite().all() and torch.tensor(read[history.diverged_at :]).isnan().all()
    assert not monitor.last.converged
    fresh, _ = make("relu")
    assert monitor(fresh) == pytest.approx(read[0], rel=1e-3)  # and it can go on


def test_a_layer_that_thaws_is_seen():
    model, x = make("layer")
    batch, exact = (x, labels(x)[0]), {}
    model[3].requires_grad_(False)
    monitor = SharpnessMonitor(cross_entropy, batch, tol=1e-6, refresh=100)
    for thawed in (False, True):
        model[3].requires_grad_(thawed)
        exact[thawed] = float(torch.linalg.eigvalsh(dense_hessian(model, cross_entropy, batch))[-1])
        assert monitor(model) == pytest.approx(exact[thawed], rel=1e-5)
    assert exact[True] > 1.01 * exact[False]


def test_bad_input():
    for option in ("matvecs", "refresh"):
        with pytest.raises(ValueError, match=f"{option} must be >= 1, got 0"):
            SharpnessMonitor(mse_loss, (None, None), **{option: 0})
    with pytest.raises(ValueError, match="tol must be finite and > 0, got 0.0"):
        SharpnessMonitor(mse_loss, (None, None), tol=0)
