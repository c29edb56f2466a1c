"""The scale-invariant recipe, for every combination, and what breaks it."""

import itertools
import math

import pytest
import torch

from normcore.lab import cnn, mlp, preresnet, resnet, trainable

INPUTS = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ACTIVATIONS = ["relu", "leaky_relu", "tanh", "identity"]
IMAGE_NORMS = ["layer", "batch", "group", "instance"]


def change(net, weights, factor):
    """Relative change of the output when these weights are multiplied."""
    x = INPUTS.to(weights[0].dtype)
    with torch.no_grad():
        before = net(x)
        for p in weights:
            p.mul_(factor)
        after = net(x)
        for p in weights:
            p.div_(factor)
    return float((after - before).norm() / before.norm())


def defect(net, factor=10.0):
    """Relative change of the output when all trained weights are multiplied."""
    return change(net, trainable(net), factor)


def with_values(net):
    """Give affine parameters values other than 1 and 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in trainable(net):
            if p.ndim == 1:
                p.copy_(torch.rand(p.shape, generator=generator, dtype=p.dtype) + 0.5)
    return net


@pytest.mark.parametrize(
    ("norm", "activation"), list(itertools.product(["layer", "batch", "group"], ACTIVATIONS))
)
def test_mlp(norm, activation):
    net = mlp((64, 16, 16, 10), norm=norm, activation=activation, dtype=torch.float64)
    assert defect(net) < 1e-6


IMAGE_CASES = [
    case
    for case in itertools.product(IMAGE_NORMS, ACTIVATIONS)
    if case != ("instance", "identity")  # the mean over the image is then 0: see below
]


@pytest.mark.parametrize(("norm", "activation"), IMAGE_CASES)
def test_cnn(norm, activation):
    assert defect(cnn(norm=norm, activation=activation, dtype=torch.float64)) < 1e-6


def test_instance_norm_without_an_activation_has_nothing_left_to_average():
    net = cnn(norm="instance", activation="identity", dtype=torch.float64)
    assert float(net(INPUTS).detach().abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("make", "norm", "depth"),
    list(itertools.product([preresnet, resnet], IMAGE_NORMS, [8, 14, 20])),
)
def test_residual_nets(make, norm, depth):
    assert defect(make(depth, width=4, norm=norm, dtype=torch.float64)) < 1e-6


@pytest.mark.parametrize(
    "net",
    [
        lambda **dtype: preresnet(8, norm_shortcut=False, **dtype),
        lambda **dtype: resnet(8, norm_shortcut=False, **dtype),
        lambda **dtype: with_values(mlp((64, 16, 10), affine=True, **dtype)),
        lambda **dtype: with_values(cnn(affine=True, **dtype)),
        lambda **dtype: with_values(preresnet(8, affine=True, **dtype)),
        lambda **dtype: with_values(resnet(8, affine=True, **dtype)),
        lambda **dtype: mlp((64, 16, 10), head="trained", **dtype),
        lambda **dtype: cnn(head="trained", **dtype),
        lambda **dtype: preresnet(8, head="trained", **dtype),
        lambda **dtype: mlp((64, 16, 16, 10), norm="none", **dtype),
        lambda **dtype: cnn(norm="none", **dtype),
        lambda **dtype: preresnet(8, norm="none", **dtype),
        lambda **dtype: mlp((64, 16, 10), eps=1.0, **dtype),
        lambda **dtype: cnn(eps=1.0, **dtype),
    ],
)
def test_controls_each_rule_is_needed(net):
    assert defect(net(dtype=torch.float64)) > 1e-2


@pytest.mark.parametrize("make", [mlp, cnn, resnet])
def test_each_weight_is_invariant_alone(make):
    net = make(*([(64, 16, 16, 10)] if make is mlp else []), dtype=torch.float64)
    assert max(change(net, [p], 3.0) for p in trainable(net)) < 1e-6


def test_the_weights_of_a_preresnet_are_not():
    net = preresnet(8, dtype=torch.float64)
    assert max(change(net, [p], 3.0) for p in trainable(net)) > 1e-2


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_with_eps_zero_powers_of_two_change_no_bit(norm):
    for dtype in (torch.float32, torch.float64):
        assert defect(preresnet(8, norm=norm, dtype=dtype), 2.0**-40) == 0.0
        assert defect(preresnet(8, norm=norm, eps=1e-5, dtype=dtype), 2.0**-40) > 1e-2


def test_only_hidden_weights_are_trained_and_none_has_a_bias():
    net = preresnet(8)
    assert not [name for name, _ in net.named_parameters() if "bias" in name]
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["8.weight"]
    assert all(p.ndim == 4 for p in trainable(net))
    assert mlp((64, 16, 10), head="trained")[-1].weight.requires_grad


def test_depth_counts_the_convolutions_on_the_main_path_and_the_head():
    for depth, make in itertools.product((8, 14, 20, 32), (preresnet, resnet)):
        net = make(depth, width=2)
        main = [p for p in trainable(net) if p.shape[-1] == 3]
        assert len(main) + 1 == depth
        assert len(trainable(net)) - len(main) == (3 if make is preresnet else 2)


def test_the_head_has_variance_one_over_fan_in():
    weight = mlp((64, 400, 50))[-1].weight
    assert float(weight.std()) * math.sqrt(400) == pytest.approx(1.0, abs=0.03)  # 20,000 draws


def test_strides():
    shapes = [tuple(m.stride) for m in cnn((4, 4, 4), strides=(2, 1, 2)) if hasattr(m, "stride")]
    assert shapes == [(2, 2), (1, 1), (2, 2)]


def test_the_seed_makes_the_net_and_moves_nothing_else():
    before = torch.get_rng_state()
    for make in (lambda seed: mlp((64, 16, 10), seed=seed), lambda seed: preresnet(8, seed=seed)):
        a, b, c = (trainable(make(seed))[0] for seed in (1, 1, 2))
        assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mlp((64, 16, 10), norm="bn"), "norm must be 'batch', 'group', 'layer'"),
        (lambda: mlp((64, 16, 10), norm="instance"), r"'instance' \(images only\)"),
        (lambda: mlp((64, 16, 10), head="loose"), "head must be 'frozen' or 'trained', got"),
        (lambda: mlp((64, 16, 10), activation="swish"), "activation must be one of"),
        (lambda: mlp((64, 16, 10), dtype=torch.float16), "dtype must be torch.float32 or"),
        (lambda: mlp((64, 10)), r"sizes must be \(inputs, hidden, ..., classes\), got"),
        (lambda: cnn((4, 4), strides=(1,)), r"strides must hold one for each of 2 channels, got"),
        (lambda: preresnet(9), r"depth must be 6n \+ 2 with n >= 1, got 9"),
        (lambda: resnet(2), r"depth must be 6n \+ 2 with n >= 1, got 2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
