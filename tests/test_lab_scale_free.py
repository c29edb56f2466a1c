"""The recipe on given models, torchvision's among them: what holds, what does not, and why."""

import copy

import pytest
import torch
import torchvision
from scaling import defect
from torch import nn

from normcore.lab.nets import cnn, mlp, two_layer
from normcore.lab.resnets import preresnet, resnet
from normcore.lab.scale_free import make_scale_invariant

PHOTOS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
X = torch.randn(16, 6, generator=torch.Generator().manual_seed(2))


def build(name, **options):
    """A torchvision model with random weights."""
    torch.manual_seed(0)
    return getattr(torchvision.models, name)(num_classes=10, **options)


def small_vit():
    torch.manual_seed(0)
    sizes = dict(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    return torchvision.models.VisionTransformer(**sizes, num_classes=10)


def freeze(model, report):
    """Freeze what the report names."""
    for obstacle in report.obstacles:
        for name in obstacle.tensors:
            model.get_parameter(name).requires_grad_(False)


def independent_defect(model):
    """The times-ten test by the formula, with dropout off: measured by other code."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    model.aux_logits = False
    return defect(model, PHOTOS.double())


HOLD = [
    ("resnet18", {}),
    ("densenet121", {}),
    ("shufflenet_v2_x0_5", {}),
    ("mobilenet_v2", {}),
    ("mnasnet0_5", {}),
    ("googlenet", {"init_weights": False}),
]


@pytest.mark.parametrize(("name", "options"), HOLD)
def test_torchvision_models_that_hold(name, options):
    model = build(name, **options)
    before = independent_defect(model)
    report = make_scale_invariant(model, PHOTOS)
    assert report.holds and report.defect < 1e-9 and report.sensitivity > 0.1
    assert report.obstacles == () and report.unused == () and report.mode == "train"
    assert independent_defect(model) < 1e-6 < 1e-2 < before
    assert str(report).startswith("scale-invariant (train mode")
    assert all(p.ndim > 1 for p in model.parameters() if p.requires_grad)


def test_vgg_with_its_three_layer_head():
    model = build("vgg11_bn")
    model.classifier[0] = nn.Linear(512 * 49, 64)  # the usual width of 4096 only costs time
    model.classifier[3], model.classifier[6] = nn.Linear(64, 64), nn.Linear(64, 10)
    report = make_scale_invariant(model, PHOTOS)
    assert report.holds and report.defect < 1e-9
    what = {change.module: change.what for change in report.changes}
    assert what["features.0"] == "bias 0, frozen"
    assert what["features.1"] == "gain 1, frozen; shift 0, frozen; eps 1e-05 -> 1.2e-38"
    for index in (0, 3, 6):
        frozen = "weight frozen: no norm behind it; bias frozen: no norm behind it"
        assert what[f"classifier.{index}"] == frozen
    assert len(what) == 8 + 8 + 3
    assert independent_defect(model) < 1e-6


def test_squeeze_and_excitation_is_named_and_freezing_it_helps():
    model = build("mobilenet_v3_small")
    report = make_scale_invariant(model, PHOTOS)
    assert not report.holds and report.defect > 1e-2 and independent_defect(model) > 1e-2
    assert len(report.obstacles) == 9  # as many as it has
    first = report.obstacles[0]
    assert first.name == "features.1.block.1.scale_activation"
    assert first.reason == "Hardsigmoid is not homogeneous"
    assert first.tensors == ("features.1.block.1.fc1.weight", "features.1.block.1.fc2.weight")
    freeze(model, report)
    again = make_scale_invariant(model, PHOTOS)
    assert again.holds and independent_defect(model) < 1e-6
    assert again.changes == ()


def test_a_vision_transformer_is_not_invariant_and_the_report_says_why():
    model = small_vit()
    report = make_scale_invariant(model, PHOTOS)
    assert not report.holds
    names = [obstacle.name for obstacle in report.obstacles]
    for layer in (0, 1):
        assert f"encoder.layers.encoder_layer_{layer}.mlp.1" in names
        assert f"encoder.layers.encoder_layer_{layer}.self_attention" in names
    assert "heads.head.weight: is frozen at zero" in str(report) and "GELU is not homogeneous" in str(report)
    assert "softmax" in str(report) and str(report).startswith("NOT scale-invariant")
    nn.init.normal_(model.heads.head.weight)
    report = make_scale_invariant(model, PHOTOS)
    assert not report.holds and report.defect > 1e-2 and "frozen at zero" not in str(report)
    for name, p in model.named_parameters():
        if "in_proj" in name or "mlp.0" in name:  # all that stands in front of a softmax or a GELU
            p.requires_grad_(False)
    assert make_scale_invariant(model, PHOTOS).holds and independent_defect(model) < 1e-6


def test_a_convnext_is_not_although_its_tiny_layer_scale_hides_it():
    block = torchvision.models.convnext.CNBlockConfig
    torch.manual_seed(0)
    model = torchvision.models.ConvNeXt([block(8, 16, 1), block(16, None, 1)], num_classes=10)
    report = make_scale_invariant(model, PHOTOS)
    assert not report.holds and report.defect > 1e-2
    assert [o.name for o in report.obstacles if "GELU" in o.reason] == [
        "features.1.0.block.4",
        "features.3.0.block.4",
    ]


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "instance"])
@pytest.mark.parametrize("make", [cnn, preresnet, resnet])
def test_our_own_nets_with_everything_undone(make, norm):
    model = make(norm=norm, affine=True, eps=0.1, head="trained")
    report = make_scale_invariant(model, IMAGES)
    assert report.holds and defect(model.double(), IMAGES.double()) < 1e-6


def test_standardised_weights_need_no_norm():
    report = make_scale_invariant(mlp((64, 16, 10), norm="weight-standardised"), IMAGES)
    assert report.holds and report.changes == ()
    report = make_scale_invariant(mlp((64, 16, 10), norm="weight-standardised", affine=True), IMAGES)
    assert [o.name for o in report.obstacles] == ["2.weight", "2.bias"]
    report = make_scale_invariant(mlp((64, 16, 10), norm="weight-standardised", head="trained"), IMAGES)
    assert [o.name for o in report.obstacles] == ["4.weight"]


@pytest.mark.parametrize("norm_shortcut", [True, False])
def test_a_shortcut_without_a_norm(norm_shortcut):
    report = make_scale_invariant(preresnet(8, norm_shortcut=norm_shortcut), IMAGES)
    assert report.holds is norm_shortcut
    assert [o.name for o in report.obstacles][:1] == ([] if norm_shortcut else ["1"])


def test_only_what_no_norm_follows_is_frozen():
    model = resnet(8, norm_shortcut=False)
    report = make_scale_invariant(model, IMAGES)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["5.shortcut.0.weight", "8.weight"]  # that of block 4 also feeds the norms of block 5
    assert "4.shortcut.0.weight" in [o.name for o in report.obstacles] and not report.holds


@pytest.mark.parametrize("make", [lambda: cnn(norm="none"), lambda: two_layer(64, 16)])
def test_without_norms_nothing_is_frozen_and_every_weight_is_named(make):
    model = make()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    report = make_scale_invariant(model, IMAGES)
    assert not report.holds and report.changes == ()
    assert [o.name for o in report.obstacles] == trained


def test_in_eval_mode_batch_norm_is_in_the_way():
    model = preresnet(8, affine=True).eval()
    report = make_scale_invariant(model, IMAGES)
    assert not report.holds and report.mode == "eval" and not model.training
    assert all("running statistics" in o.reason for o in report.obstacles) and len(report.obstacles) == 10
    assert make_scale_invariant(preresnet(8, norm="layer").eval(), IMAGES).holds
    model.train()[4].eval()
    report = make_scale_invariant(model, IMAGES)
    assert (report.mode, [o.name for o in report.obstacles]) == ("mixed", ["4"])


def test_a_constant_output_is_no_success():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    nn.init.zeros_(model[2].weight)
    nn.init.ones_(model[2].bias)
    report = make_scale_invariant(model, X)
    assert report.defect == 0.0 and not report.holds
    assert "2.weight: is frozen at zero" in str(report) and "does not depend on the trained" in str(report)


def test_with_nothing_left_to_train_there_is_no_success():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    model[0].weight.requires_grad_(False)
    report = make_scale_invariant(model, X)
    assert not report.holds and "no trained weight is left" in str(report)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2))  # no weight in front of the norm
    report = make_scale_invariant(model, X)
    assert [o.name for o in report.obstacles] == ["1.weight", "1.bias"] and model[1].weight.requires_grad


class Odd(nn.Module):
    """A trained shift that starts at zero, on a path of degree 0, and a layer that is not used."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8)])
        self.shift, self.spare = nn.Parameter(torch.zeros(8)), nn.Linear(2, 2)

    def forward(self, x):
        h = self.norms[0](self.first(x)).relu() + self.shift
        return self.norms[1](self.second(h))


def test_what_starts_at_zero_does_not_hide_and_what_is_not_used_is_listed():
    torch.manual_seed(0)
    model = Odd()
    report = make_scale_invariant(model, X)
    assert not report.holds and [o.name for o in report.obstacles] == [""]
    assert report.unused == ("spare.weight", "spare.bias")
    assert "not used in this pass, so not measured:\n  spare.weight" in str(report)
    model.shift.requires_grad_(False)
    assert make_scale_invariant(model, X).holds


def test_only_the_listed_changes_are_made():
    torch.manual_seed(0)
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    before, stats = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    report = make_scale_invariant(model, PHOTOS)
    assert torch.equal(stats, torch.get_rng_state()) and model.training
    touched = {name for name, v in model.state_dict().items() if not torch.equal(v, before[name])}
    assert touched == set()  # fresh norms have gain 1 and shift 0, and running statistics did not move
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {torch.finfo(torch.float32).tiny}
    frozen = {
        name.split(".weight")[0].split(".bias")[0]
        for name, p in model.named_parameters()
        if not p.requires_grad
    }
    assert frozen == {change.module for change in report.changes}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert make_scale_invariant(model, PHOTOS).changes == ()
    nn.init.constant_(norms[0].weight, 0.0)
    assert [c.module for c in make_scale_invariant(model, PHOTOS).changes] == ["bn1"]


def test_bad_input():
    with pytest.raises(TypeError, match="inputs must be a tensor, got tuple"):
        make_scale_invariant(mlp((64, 16, 10)), (IMAGES, IMAGES))
    with pytest.raises(ValueError, match="model must have a trained parameter, got none"):
        make_scale_invariant(nn.Linear(6, 2).requires_grad_(False), X)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))
    with pytest.raises(ValueError, match="model must give finite outputs on the batch"):
        make_scale_invariant(model, X * torch.nan)
    assert model[1].weight.requires_grad and model[1].eps == 1e-5
