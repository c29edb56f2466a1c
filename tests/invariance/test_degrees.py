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
        self.stem, self.norm1, self.conv = (
            nn.Linear(4, 8, bias=False),
            nn.LayerNorm(8, eps=1e-2),
            nn.Linear(8, 8, bias=bias),
        )
        self.norm2 = nn.LayerNorm(8, eps=1e-2)
        self.double()

    def forward(self, x):
        x = self.stem(x)
        return self.norm2(x + self.conv(torch.relu(self.norm1(x))))


INPUTS = ((torch.randn(16, 4, generator=torch.Generator().manual_seed(0)).double(),), {})


def test_joint_degrees_of_a_residual_stream():
    net = Residual()
    assert nc.norm_input_degrees(net, [[net.stem.weight, net.conv.weight]], INPUTS) == {
        "norm1": [1],
        "norm2": [1],
    }


def test_control_half_of_the_stream_is_refused():
    net = Residual()
    with pytest.raises(
        ValueError,
        match=r"the input of norm layer 'norm2' must be homogeneous in the group's weights, got degree 0\.\d+",
    ):
        nc.norm_input_degrees(net, [[net.stem.weight]], INPUTS)


def test_products_add_degrees():
    net = nn.Sequential(
        nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)
    ).double()
    both = [net[0].weight, net[2].weight]
    assert nc.norm_input_degrees(net, [both, both[:1]], INPUTS) == {"3": [2, 1]}


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8, eps=1e-3)).double().eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    nc.norm_input_degrees(net, [[net[0].weight]], INPUTS)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert net[1].eps == 1e-3 and not net[1].training


class Twice(nn.Module):
    """One norm called on two inputs; the first is small, so that a sum over the calls would not see it."""

    def __init__(self, *, keyword=False):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.keyword = nn.Linear(4, 8, bias=False), nn.Linear(4, 8, bias=False), keyword
        self.norm = nn.LayerNorm(8)
        self.double()

    def forward(self, x):
        first = 1e-3 * self.a(x)
        return (self.norm(input=first) if self.keyword else self.norm(first)) + self.norm(self.b(x))


@pytest.mark.parametrize("keyword", [False, True])
def test_all_calls_of_a_layer_must_agree(keyword):
    net = Twice(keyword=keyword)
    assert nc.norm_input_degrees(net, [[net.a.weight, net.b.weight]], INPUTS) == {"norm": [1]}
    with pytest.raises(
        ValueError, match=r"the inputs of norm layer 'norm' must have one degree .* got \[0, 1\]"
    ):
        nc.norm_input_degrees(net, [[net.a.weight]], INPUTS)


def test_inputs_may_be_the_arguments_alone():
    net = Residual()
    group = [[net.stem.weight, net.conv.weight]]
    assert nc.norm_input_degrees(net, group, INPUTS[0]) == nc.norm_input_degrees(net, group, INPUTS)


def test_weights_mode_eps_and_random_state_survive_an_exception():
    net, before_rng = Residual().eval(), torch.get_rng_state()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="norm2"):
        nc.norm_input_degrees(net, [[net.stem.weight]], INPUTS)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert net.norm1.eps == 1e-2 and not net.norm1.training and not net.norm2._forward_pre_hooks
    assert torch.equal(before_rng, torch.get_rng_state())


def test_runs_inside_a_forward_pre_hook():
    net, found = Residual(), []
    handle = net.register_forward_pre_hook(
        lambda m, args: found.append(nc.norm_input_degrees(m, [[m.stem.weight, m.conv.weight]], (args, {})))
    )
    net(INPUTS[0][0])
    handle.remove()
    assert found == [{"norm1": [1], "norm2": [1]}]


def test_degrees_of_a_model_in_eval_mode_are_those_of_training():
    layers = nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.LayerNorm(8)
    net = nn.Sequential(*layers).double().eval()
    assert nc.norm_input_degrees(net, [[net[0].weight]], INPUTS) == {"1": [1], "3": [0]}


def test_a_tensor_twice_or_of_another_model_is_refused():
    net = Residual()
    for group in ([net.stem.weight, net.stem.weight], [torch.ones(2)]):
        with pytest.raises(ValueError, match="groups must hold parameters of the model, each once"):
            nc.norm_input_degrees(net, [group], INPUTS)
