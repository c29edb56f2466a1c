"""Every kind of obstacle, planted in a net that is invariant without it, and named."""

import pytest
import torch
from torch import nn

from normcore.lab.obstacles import Obstacle, obstacles, powers_of_ten
from normcore.lab.resnets import preresnet, resnet

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def net(*, act=nn.ReLU, norm=None, bias=False, head=False):
    """linear-ReLU-linear-act-linear-norm-ReLU-head, eps tiny, the head frozen unless asked."""
    torch.manual_seed(0)
    norm = norm or nn.LayerNorm(8, eps=1e-300, elementwise_affine=False)
    weights = [nn.Linear(*shape, bias=bias) for shape in ((6, 8), (8, 8), (8, 8))]
    last = nn.Linear(8, 3).requires_grad_(head)
    layers = [weights[0], nn.ReLU(), weights[1], act(), weights[2], norm, nn.ReLU(), last]
    return nn.Sequential(*layers).double()


class Shortcut(nn.Module):
    """x plus a branch: a sum of degree 1 and 2 where the branch has no norm of its own."""

    def __init__(self, *, bare):
        super().__init__()
        self.norm = nn.Identity() if bare else nn.LayerNorm(8, eps=1e-300, elementwise_affine=False)
        self.linear = nn.Linear(8, 8, bias=False)

    def forward(self, x):
        return x + self.linear(self.norm(x))


def names(model, inputs=X):
    return [o.name for o in obstacles(model, inputs)]


def test_nothing_is_in_the_way_of_an_invariant_net():
    assert obstacles(net(), X) == []
    for make in (preresnet, resnet):
        assert obstacles(make(8, dtype=torch.float64), IMAGES) == []


@pytest.mark.parametrize("act", [nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus])
def test_an_activation_with_no_norm_before_it(act):
    (only,) = obstacles(net(act=act), X)
    assert only == Obstacle("3", f"{act.__name__} is not homogeneous", ("0.weight", "2.weight"))


@pytest.mark.parametrize("act", [nn.LeakyReLU, nn.Identity, nn.Hardtanh])
def test_control_homogeneous_activations_are_not_named(act):
    assert names(net(act=act)) == ([] if act is not nn.Hardtanh else ["3"])


def test_biases_that_scale_differently():
    """The first alone would do no harm: W x + b scales as a whole."""
    found = obstacles(net(bias=True), X)
    assert [o.name for o in found] == ["2"] and "adds a bias to something that scales differently" in str(
        found[0]
    )
    model = net(bias=True)
    for index in (2, 4):
        nn.init.zeros_(model[index].bias).requires_grad_(False)
    assert obstacles(model, X) == []


def test_a_trained_head():
    found = obstacles(net(head=True), X)
    assert [o.name for o in found] == ["7.weight", "7.bias"]
    assert all("no norm behind it" in o.reason for o in found)


def test_a_shortcut_without_a_norm():
    torch.manual_seed(0)
    for bare, expected in ((True, ["1"]), (False, [])):
        norm = nn.LayerNorm(8, eps=1e-300, elementwise_affine=False)
        model = nn.Sequential(nn.Linear(6, 8, bias=False), Shortcut(bare=bare), norm).double()
        found = obstacles(model, X)
        assert [o.name for o in found] == expected
        assert all("a shortcut without a norm" in o.reason for o in found)


def test_the_blocks_of_residual_nets():
    (first, *_) = obstacles(preresnet(8, norm_shortcut=False, dtype=torch.float64), IMAGES)
    assert first.name == "1" and set(first.tensors) == {"0.weight", "1.conv2.weight", "1.shortcut.0.weight"}
    found = [o.name for o in obstacles(resnet(8, norm_shortcut=False, dtype=torch.float64), IMAGES)]
    assert found[:2] == ["4.shortcut.0.weight", "5.shortcut.0.weight"] and "4" in found


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.LayerNorm(8, eps=1e-300), "has a trained gain or shift"),
        (nn.LayerNorm(8, eps=0.1, elementwise_affine=False), "has an eps of 0.1"),
        (nn.BatchNorm1d(8, eps=1e-300, affine=False).eval(), "in eval mode divides by running statistics"),
    ],
)
def test_norms(norm, reason):
    (only,) = obstacles(net(norm=norm), X)
    assert only.name == "5" and reason in only.reason


def test_two_obstacles_do_not_hide_each_other():
    norm = nn.Sequential(nn.LayerNorm(8, eps=1e-300, elementwise_affine=False), nn.Linear(8, 8), nn.Tanh())
    model = net(act=nn.GELU, norm=norm)
    model[5][1].requires_grad_(True)
    assert {"3", "5.2"} <= set(names(model))


def test_the_innermost_module_is_named_not_what_holds_it():
    norm = nn.LayerNorm(8, eps=1e-300, elementwise_affine=False)
    branch = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Sequential(nn.GELU()))
    assert names(nn.Sequential(branch, norm).double()) == ["0.1.0"]


def test_powers_of_ten():
    a = torch.tensor([1.0, -2.0, 0.0, 1e-30], dtype=torch.float64)
    assert powers_of_ten(a, a * torch.tensor([1.0, 1e3, 1.0, 1e-4]))
    for b in (-a, 2 * a, a + 1, a[:2], a * torch.nan, a * torch.inf):
        assert not powers_of_ten(a, b)
    assert powers_of_ten(a, a * (1 + 1e-9)) and not powers_of_ten(a, a * (1 + 1e-4))


def test_an_obstacle_prints_on_one_line():
    long = Obstacle("a", "is odd", ("w1", "w2", "w3", "w4", "w5"))
    assert str(long) == "a: is odd [trained, no norm in between: w1, w2, w3 and 2 more]"
    assert str(Obstacle("w", "is odd", ("w",))) == "w: is odd"
    assert str(Obstacle("", "is odd")) == "the model itself: is odd"
