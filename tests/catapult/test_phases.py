"""Edges in the learning rate, checked on descents that stand on either side of them."""

import numpy as np
import pytest
import torch
from torch import nn

from normcore import catapult
from normcore.catapult.warm_up import lr_phases
from normcore.curvature.ntk import ntk_top_eigenvalue


def test_the_edges_of_the_linear_model():
    phases = lr_phases(2.0)
    assert (phases.critical_lr, phases.max_lr, phases.max_is_theory) == (1.0, 2.0, True)
    rates = np.array([0.5, 0.98, 1.02, 1.9, 1.98, 2.02, 3.0])
    run = catapult.simulate(1.0, 2.0, rates, 2**40, 50)
    assert phases.phase(rates).tolist() == run.phase.tolist()


@pytest.mark.parametrize(
    "scale, loss", [(1.0, lambda f, y: ((f - y) ** 2).sum() / (2 * len(y))), (2 / 5, nn.MSELoss())]
)
def test_a_descent_rises_above_the_critical_rate_only(scale, loss):
    torch.manual_seed(0)
    x, y = torch.randn(20, 6).double(), torch.randn(20, 5).double()
    start = nn.Linear(6, 5).double()  # linear in its weights: 2/curvature is exact
    phases = lr_phases(ntk_top_eigenvalue(start, x), loss_scale=scale)
    grew = []
    for factor in (0.98, 1.02):
        model = nn.Linear(6, 5).double()
        model.load_state_dict(start.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=factor * phases.critical_lr)
        losses = []
        for _ in range(400):
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step()
            losses.append(float(value.detach()))
        grew.append(losses[-1] > losses[0])
    assert grew == [False, True]


def test_what_is_measured_is_told_from_what_is_theory():
    theory, measured = lr_phases(8.0), lr_phases(8.0, max_constant=12.0)
    assert (
        measured.max_lr == 1.5 and not measured.max_is_theory and measured.critical_lr == theory.critical_lr
    )
    assert "theory for the two-layer linear model" in str(theory) and "measured constant 12" in str(measured)
    assert "plain gradient descent without momentum" in theory.assumptions["critical_lr"]
    with pytest.raises(AttributeError):
        theory.max_lr = 3.0
    with pytest.raises(TypeError):
        theory.assumptions["max_lr"] = "none"


def test_bad_input():
    for value in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="curvature must be finite and > 0"):
            lr_phases(value)
    with pytest.raises(ValueError, match="max_constant must be finite and > 2, got 2.0"):
        lr_phases(1.0, max_constant=2.0)
    with pytest.raises(ValueError, match="loss_scale must be finite and > 0, got 0.0"):
        lr_phases(1.0, loss_scale=0.0)
    with pytest.raises(ValueError, match=r"curvature\*loss_scale must be finite and > 0, got inf"):
        lr_phases(8.0, loss_scale=1e308)
    with pytest.raises(ValueError, match=r"curvature must be one number, got shape \(2,\)"):
        lr_phases([1.0, 2.0])
    with pytest.raises(ValueError, match="lr must be finite and > 0, got -1.0"):
        lr_phases(1.0).phase([-1.0])
    torch.manual_seed(0)
    early = ntk_top_eigenvalue(nn.Linear(6, 5).double(), torch.randn(20, 6).double(), max_matvecs=1)
    with pytest.raises(ValueError, match="curvature must have converged, got a relative residual of"):
        lr_phases(early)
