"""Standardised weights against a naive formula, and the layers by name."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normcore.lab.nets.layers import ACTIVATIONS, VARIANCES, Affine, norm_layer, standardised, weight_layer

GENERATOR = torch.Generator().manual_seed(0)
OPERATIONS = {0: F.linear, 1: F.conv1d, 2: F.conv2d}


def naive(weight, eps=0.0):
    """Filter by filter, entry by entry."""
    out = torch.empty_like(weight)
    for o, w in enumerate(weight):
        values = w.flatten().tolist()
        n = len(values)
        mean = math.fsum(values) / n
        sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / n + eps)
        out[o] = torch.tensor([(v - mean) / sd / math.sqrt(n) for v in values], dtype=w.dtype).reshape(
            w.shape
        )
    return out


@pytest.mark.parametrize("eps", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3), (4, 2, 3, 3), (3, 2, 1, 1)])
def test_standardised_against_the_naive_formula(shape, eps):
    weight = torch.randn(shape, generator=GENERATOR, dtype=torch.float64) * 3 + 1
    assert torch.allclose(standardised(weight, eps), naive(weight, eps), rtol=0, atol=1e-13)
    filters = standardised(weight).flatten(1)
    assert float(filters.sum(1).abs().max()) < 1e-13
    assert torch.allclose(filters.norm(dim=1), torch.ones(shape[0]).double(), rtol=0, atol=1e-13)
    assert torch.allclose(standardised(weight, gain=2.5), 2.5 * standardised(weight), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dims", [0, 1, 2])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_a_standardised_layer_is_the_plain_one_with_standardised_weights(dims, activation):
    shape = (3, 2) if dims else ()
    layer = weight_layer("weight-standardised", dims, 6, 4, *shape, activation=activation).double()
    x = torch.randn(5, 6, *[9] * dims, generator=GENERATOR, dtype=torch.float64)
    weight = standardised(layer.weight) / math.sqrt(VARIANCES[activation])
    options = {"stride": 2, "padding": 1} if dims else {}
    assert torch.allclose(layer(x), OPERATIONS[dims](x, weight, **options), rtol=0, atol=1e-13)
    plain = weight_layer("batch", dims, 6, 4, *shape)
    assert type(plain) in (nn.Linear, nn.Conv1d, nn.Conv2d) and plain.weight.shape == layer.weight.shape


def test_the_gradient_is_orthogonal_to_each_filter():
    weight = torch.randn(4, 9, generator=GENERATOR, dtype=torch.float64, requires_grad=True)
    standardised(weight).pow(3).sum().backward()
    assert float((weight.grad * weight).detach().sum(1).abs().max()) < 1e-13
    assert float(weight.grad.sum(1).abs().max()) < 1e-13  # the mean does not matter either
    assert float(weight.grad.norm()) > 1e-2


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_the_variances_of_the_activations(name):
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    f = ACTIVATIONS[name]()(z)
    mean, square = (float(torch.trapezoid(v * density, z)) for v in (f, f * f))
    assert VARIANCES[name] == pytest.approx(square - mean**2, abs=1e-3 if name == "tanh" else 1e-6)


@pytest.mark.parametrize("dims", [0, 1, 2])
def test_affine_scales_and_shifts_channels(dims):
    layer = norm_layer("weight-standardised", 3, dims=dims, affine=True, eps=0.0)
    assert isinstance(layer, Affine)
    x = torch.randn(2, 3, *[4] * dims, generator=GENERATOR)
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        layer.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
    assert torch.equal(layer(x)[:, 1], 2 * x[:, 1]) and torch.equal(layer(x)[:, 2], 3 * x[:, 2] + 1)


def test_signals_get_the_layers_for_signals():
    kinds = [type(norm_layer(k, 8, dims=1, affine=False, eps=1e-5)) for k in ("batch", "layer", "instance")]
    assert kinds == [nn.BatchNorm1d, nn.GroupNorm, nn.InstanceNorm1d]
