"""Norm layers that follow the scale of the weights that feed them."""

import pytest
import torch
from nets import batches, groups, net
from torch.optim import SGD

from normcore.equivalence.group_gauge import GroupGauge
from normcore.equivalence.norm_layers import NormScaling, scale_statistics


def scaled(factor):
    """A net whose hidden weights were multiplied by the factor, with its scaling."""
    model = net(eps=0.1)
    gauge = GroupGauge(SGD(groups(model), lr=0.1), 0)
    scaling = NormScaling(model, [gauge])
    for x, _ in batches(5):
        model(x)  # measures, and moves the running statistics
    with torch.no_grad():
        for p in gauge.group["params"]:
            p.mul_(factor)
    gauge.x = 1 / factor
    return model, scaling


@pytest.mark.parametrize("training", [True, False])
def test_outputs_do_not_move(training):
    reference, _ = scaled(1.0)
    model, scaling = scaled(3.0)
    scaling.update()
    x = next(batches(1, seed=4))[0]
    reference.train(training), model.train(training)
    torch.testing.assert_close(model(x), reference(x), rtol=1e-12, atol=1e-12)
    assert model[1].eps == pytest.approx(0.9)


def test_control_without_the_update_they_do():
    reference, _ = scaled(1.0)
    model, _ = scaled(3.0)
    x = next(batches(1, seed=4))[0]
    assert float((model(x) - reference(x)).detach().abs().max()) > 1e-2


def test_a_scale_of_one_gives_back_the_original_eps():
    model, scaling = scaled(3.0)
    scaling.update()
    scaling.gauges[0].x = 1.0
    scaling.update()
    assert model[1].eps == 0.1


def test_scale_statistics_ignores_layers_without_any():
    layer = torch.nn.LayerNorm(3)
    scale_statistics(layer, 2.0)
    batch_norm = torch.nn.BatchNorm1d(2)
    batch_norm.running_mean.fill_(1.0)
    scale_statistics(batch_norm, 2.0)
    assert batch_norm.running_mean.tolist() == [2.0, 2.0] and batch_norm.running_var.tolist() == [4.0, 4.0]
