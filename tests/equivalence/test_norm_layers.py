"""Norm layers that follow the scale of the weights that feed them."""

import copy

import pytest
import torch
from nets import batches, groups, net
from torch import nn
from torch.optim import SGD

from normcore.equivalence.co_scaling import CoScaling
from normcore.equivalence.group_gauge import GroupGauge
from normcore.equivalence.norm_layers import NormLayer, norm_layers


def scaled(factor):
    """A net whose hidden weights were multiplied by the factor, with its scaling."""
    model = net(eps=0.1)
    gauge = GroupGauge(SGD(groups(model), lr=0.1), 0)
    scaling = CoScaling(model, {0: gauge})
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
    NormLayer("", nn.LayerNorm(3)).scale_statistics(2.0)
    batch_norm = nn.BatchNorm1d(2)
    batch_norm.running_mean.fill_(1.0)
    NormLayer("", batch_norm).scale_statistics(2.0)
    assert batch_norm.running_mean.tolist() == [2.0, 2.0] and batch_norm.running_var.tolist() == [4.0, 4.0]


def test_layers_are_found_by_what_they_have():
    class Own(nn.Module):
        def __init__(self, **attributes):
            super().__init__()
            for name, value in attributes.items():
                setattr(self, name, value)

    around = Own(eps=1e-6, inner=nn.LayerNorm(3))
    model = nn.ModuleDict(
        {
            "epsilon": Own(epsilon=1e-5),
            "variance": Own(variance_epsilon=1e-6),
            "rms": nn.RMSNorm(3),
            "around": around,  # its inner module is the one that normalizes
            "steps": Own(steps=0.5, n_reps=0.1),  # names that end alike
            "large": Own(eps=2.0),
            "statistics": nn.BatchNorm1d(2),
        }
    )
    found = {layer.name: layer.attribute for layer in norm_layers(model)}
    assert found == {
        "epsilon": "epsilon",
        "variance": "variance_epsilon",
        "rms": "eps",
        "around.inner": "eps",
        "statistics": "eps",
    }


def test_a_copy_of_a_co_scaled_layer_knows_the_eps_it_was_made_with():
    layer = NormLayer("", nn.LayerNorm(3, eps=0.5))
    layer.set_eps(2.0)
    twin = NormLayer("", copy.deepcopy(layer.module))
    assert twin.eps == 2.0
    twin.set_eps(3.0)
    assert twin.eps == 4.5 and layer.module.eps == 2.0
    twin.set_eps(1.0)
    assert twin.module.eps == 0.5 and vars(twin.module).keys() == vars(nn.LayerNorm(3)).keys()


@pytest.mark.parametrize("eps", [None, 0.0, 1e-6])
def test_the_eps_at_a_scale(eps):
    layer = NormLayer("", nn.RMSNorm(3, eps=eps))
    layer.set_eps(2.0), layer.set_eps(3.0)
    assert layer.eps == 9 * (torch.finfo(torch.float32).eps if eps is None else eps)
    layer.set_eps(1.0)
    assert layer.module.eps is eps
