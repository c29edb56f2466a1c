"""The scale-invariant recipe for residual nets, in every combination, and what breaks it."""

import itertools

import pytest
import torch
from scaling import change, defect, with_values

from normcore.lab.nets.residual import preresnet, resnet

INPUTS = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NORMS = ["layer", "batch", "group", "instance", "weight-standardised"]
MAKERS = [preresnet, resnet]
DEPTHS = [8, 14, 20, 32]


def net(make, depth=8, **options):
    """A narrow one in float64; its last stage has 16 channels."""
    return make(depth, width=4, dtype=torch.float64, **options)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize(("make", "norm", "depth"), list(itertools.product(MAKERS, NORMS, DEPTHS)))
def test_ten_times_the_weights(make, norm, depth):
    model = net(make, depth, norm=norm)
    assert defect(model, INPUTS) < 1e-6
    assert change(model, [model[-1].weight], 2.0, INPUTS) > 0.5


@pytest.mark.parametrize(("make", "norm"), list(itertools.product(MAKERS, NORMS)))
def test_controls_each_rule_is_needed(make, norm):
    assert defect(net(make, norm=norm, head="trained"), INPUTS) > 1e-2
    assert defect(net(make, norm="none"), INPUTS) > 1e-2
    assert defect(with_values(net(make, norm=norm, affine=True)), INPUTS) > 1e-2
    assert defect(net(make, norm=norm, eps=1.0), INPUTS) > 1e-2
    if norm != "weight-standardised":
        assert defect(net(make, norm=norm, norm_shortcut=False), INPUTS) > 1e-2


@pytest.mark.parametrize("make", MAKERS)
def test_with_standardised_weights_a_shortcut_needs_no_norm(make):
    assert defect(net(make, norm="weight-standardised", norm_shortcut=False), INPUTS) < 1e-12


@pytest.mark.parametrize(("norm", "alone"), [("batch", False), ("weight-standardised", True)])
def test_the_weights_of_a_preresnet_are_invariant_alone_only_when_standardised(norm, alone):
    model = net(preresnet, norm=norm)
    worst = max(change(model, [p], 3.0, INPUTS) for p in trained(model))
    assert worst < 1e-12 if alone else worst > 1e-2


def test_each_weight_of_a_resnet_is_invariant_alone():
    model = net(resnet)
    assert max(change(model, [p], 3.0, INPUTS) for p in trained(model)) < 1e-12


@pytest.mark.parametrize("make", MAKERS)
def test_standardised_weights_keep_the_signal_within_bounds_at_depth_32(make):
    for dtype in (torch.float32, torch.float64):
        model = make(32, norm="weight-standardised", dtype=dtype)
        size = float(model[:-1](INPUTS.to(dtype)).detach().square().mean().sqrt())
        assert 0.1 < size < 1e3


def test_only_hidden_weights_are_trained_and_none_has_a_bias():
    model = preresnet(8)
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["8.weight"]
    assert all(p.ndim == 4 for p in trained(model))


def test_depth_counts_the_convolutions_on_the_main_path_and_the_head():
    for depth, make in itertools.product((*DEPTHS, 56), MAKERS):
        model = make(depth, width=2)
        main = [p for p in trained(model) if p.shape[-1] == 3]
        assert len(main) + 1 == depth
        assert len(trained(model)) - len(main) == (3 if make is preresnet else 2)


def test_standardised_nets_start_from_the_same_weights():
    plain, standardised = (preresnet(8, norm=norm) for norm in ("batch", "weight-standardised"))
    for p, q in zip(plain.parameters(), standardised.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("depth", [9, 2])
@pytest.mark.parametrize("make", MAKERS)
def test_bad_depth(make, depth):
    with pytest.raises(ValueError, match=rf"depth must be 6n \+ 2 with n >= 1, got {depth}"):
        make(depth)
