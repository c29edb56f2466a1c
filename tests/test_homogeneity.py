"""Degrees of homogeneity at the norm layers."""

import pytest
import torch
from torch import nn

import normcore as nc


class Residual(nn.Module):
    """x + norm-free branch, then a norm."""

    def __init__(self, *, bias=False):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm1, self.conv = nn.Linear(4, 8, bias=False), nn.LayerNorm(8, eps=1e-2), nn.Linear(8, 8, bias=bias)
        self.norm2 = nn.LayerNorm(8, eps=1e-2)
        self.double()

    def forward(self, x):
        x = self.stem(x)
        return self.norm2(x + self.conv(torch.relu(self.norm1(x))))


INPUTS = ((torch.randn(16, 4, generator=torch.Generator().manual_seed(0)).double(),), {})


def test_joint_degrees_of_a_residual_stream():
    net = Residual()
    assert nc.norm_input_degrees(net, [[net.stem.weight, net.conv.weight]], INPUTS) == {"norm1": [1], "norm2": [1]}


def test_control_half_of_the_stream_is_refused():
    net = Residual()
    with pytest.raises(ValueError, match=r"the input of norm layer 'norm2' must be homogeneous in the group's weights, got degree 0\.\d+"):
        nc.norm_input_degrees(net, [[net.stem.weight]], INPUTS)


def test_products_add_degrees():
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)).double()
    both = [net[0].weight, net[2].weight]
    assert nc.norm_input_degrees(net, [both, both[:1]], INPUTS) == {"3": [2, 1]}


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8, eps=1e-3)).double().eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    nc.norm_input_degrees(net, [[net[0].weight]], INPUTS)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert net[1].eps == 1e-3 and not net[1].training
