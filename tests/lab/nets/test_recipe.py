"""The recipe on given models, torchvision's among them: what holds, and what does not."""

import copy

import pytest
import torch
import torchvision
from scaling import defect
from torch import nn

from normcore.lab.nets.layers import cnn, mlp
from normcore.lab.nets.recipe import make_scale_invariant
from normcore.lab.nets.residual import preresnet, resnet

PHOTOS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
X = torch.randn(16, 6, generator=torch.Generator().manual_seed(2))


def build(name, **options):
    """A torchvision model with random weights."""
    torch.manual_seed(0)
    return getattr(torchvision.models, name)(num_classes=10, **options)


def independent_defect(model, x=PHOTOS):
    """The times-ten test by the formula, with dropout off: measured by other code."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    model.aux_logits = False
    return defect(model, x.double())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("shufflenet_v2_x0_5", {}),
        ("mobilenet_v2", {}),
        ("googlenet", {"init_weights": False}),
    ],
)
def test_torchvision_models_that_hold(name, options):
    model = build(name, **options)
    before = independent_defect(model)
    report = make_scale_invariant(model, PHOTOS)
    assert report.holds and report.in_the_way == ()
    assert independent_defect(model) < 1e-6 < 1e-2 < before
    assert str(report).startswith("scale-invariant (defect")
    assert all(p.ndim > 1 for p in model.parameters() if p.requires_grad)


def test_squeeze_and_excitation_is_named_and_freezing_it_helps():
    model = build("mobilenet_v3_small")
    report = make_scale_invariant(model, PHOTOS)
    assert not report.holds and independent_defect(model) > 1e-2
    assert "features.1.block.1.fc1.weight" in report.in_the_way
    assert all(".fc1." in name or ".fc2." in name for name in report.in_the_way)
    for name in report.in_the_way:
        model.get_parameter(name).requires_grad_(False)
    again = make_scale_invariant(model, PHOTOS)
    assert again.holds and again.changes == () and independent_defect(model) < 1e-6


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "instance"])
@pytest.mark.parametrize("make", [cnn, preresnet, resnet])
def test_our_own_nets_with_everything_undone(make, norm):
    model = make(norm=norm, affine=True, eps=0.1, head="trained")
    report = make_scale_invariant(model, IMAGES)
    assert report.holds and independent_defect(model, IMAGES) < 1e-6


def test_standardised_weights_need_no_norm():
    report = make_scale_invariant(mlp((64, 16, 10), norm="weight-standardised"), IMAGES)
    assert report.holds and report.changes == ()
    report = make_scale_invariant(mlp((64, 16, 10), norm="weight-standardised", head="trained"), IMAGES)
    assert report.in_the_way == ("4.weight",)


def test_only_what_no_norm_follows_is_frozen():
    model = resnet(8, norm_shortcut=False)
    report = make_scale_invariant(model, IMAGES)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["5.shortcut.0.weight", "8.weight"]  # that of block 4 also feeds the norms of block 5
    assert "4.shortcut.0.weight" in report.in_the_way and not report.holds


def test_without_norms_nothing_is_frozen_and_every_weight_is_named():
    model = cnn(norm="none")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    report = make_scale_invariant(model, IMAGES)
    assert not report.holds and report.changes == () and list(report.in_the_way) == trained


def test_in_eval_mode_batch_norm_is_in_the_way():
    model = preresnet(8, affine=True).eval()
    report = make_scale_invariant(model, IMAGES)
    assert not report.holds and not model.training
    assert make_scale_invariant(preresnet(8, norm="layer").eval(), IMAGES).holds


def test_a_constant_output_is_no_success():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    nn.init.zeros_(model[2].weight)
    assert not make_scale_invariant(model, X).holds
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2))  # no weight in front of the norm
    report = make_scale_invariant(model, X)
    assert not report.holds and report.in_the_way == ("1.weight", "1.bias")


class Shifted(nn.Module):
    """A trained shift that starts at zero, on a path of degree 0."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8)])
        self.shift = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        h = self.norms[0](self.first(x)).relu() + self.shift
        return self.norms[1](self.second(h))


def test_what_starts_at_zero_does_not_hide():
    torch.manual_seed(0)
    model = Shifted()
    report = make_scale_invariant(model, X)
    assert not report.holds and report.in_the_way == ("shift",)
    model.shift.requires_grad_(False)
    assert make_scale_invariant(model, X).holds


def test_only_the_listed_changes_are_made():
    torch.manual_seed(0)
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    report = make_scale_invariant(model, PHOTOS)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    frozen = {name.rpartition(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {module for module, _ in report.changes}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert make_scale_invariant(model, PHOTOS).changes == ()


def test_bad_input():
    with pytest.raises(TypeError, match="inputs must be a tensor, got tuple"):
        make_scale_invariant(mlp((64, 16, 10)), (IMAGES, IMAGES))
    with pytest.raises(ValueError, match="model must have a trained parameter, got none"):
        make_scale_invariant(nn.Linear(6, 2).requires_grad_(False), X)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))
    with pytest.raises(ValueError, match="model must give finite outputs on the batch"):
        make_scale_invariant(model, X * torch.nan)
    assert model[1].weight.requires_grad and model[1].eps == 1e-5
