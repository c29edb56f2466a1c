"""The scale-invariant recipe for plain nets, in every combination; what breaks it; the NTK net."""

import itertools
from functools import partial

import pytest
import torch
from scaling import change, defect, with_values
from torch import nn

from normcore.lab.nets.layers import cnn, cnn1d, mlp
from normcore.lab.nets.residual import preresnet, resnet, transformer

IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SIGNALS = torch.randn(12, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MLP = partial(mlp, (64, 16, 16, 10), dtype=torch.float64)
CNN = partial(cnn, dtype=torch.float64)
CNN1D = partial(cnn1d, dtype=torch.float64)
NETS = {"mlp": (MLP, IMAGES), "cnn": (CNN, IMAGES), "cnn1d": (CNN1D, SIGNALS)}
NORMS = ["layer", "batch", "group", "instance", "weight-standardised"]
ACTIVATIONS = ["relu", "leaky_relu", "tanh", "identity"]


def possible(name, norm, activation):
    """Instance norm needs pixels, and an activation behind it: see below."""
    return norm != "instance" or (name != "mlp" and activation != "identity")


ALL = [case for case in itertools.product(NETS, NORMS, ACTIVATIONS) if possible(*case)]


@pytest.mark.parametrize(("name", "norm", "activation"), ALL)
def test_ten_times_the_weights(name, norm, activation):
    make, inputs = NETS[name]
    net = make(norm=norm, activation=activation)
    assert defect(net, inputs) < 1e-12
    assert change(net, [net[-1].weight], 2.0, inputs) > 0.5  # the output is not just rounding


@pytest.mark.parametrize(("name", "norm", "activation"), ALL)
def test_controls_a_trained_head_or_none_in_place_of_the_norm(name, norm, activation):
    make, inputs = NETS[name]
    assert defect(make(norm=norm, activation=activation, head="trained"), inputs) > 1e-2
    assert defect(make(norm="none", activation=activation), inputs) > 1e-2


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("norm", [n for n in NORMS if n != "instance"])
def test_controls_a_gain_and_shift_or_a_large_eps(name, norm):
    make, inputs = NETS[name]
    assert defect(with_values(make(norm=norm, affine=True)), inputs) > 1e-2
    assert defect(make(norm=norm, eps=1.0), inputs) > 1e-2


@pytest.mark.parametrize("name", NETS)
def test_control_a_bias_with_no_norm_behind_it(name):
    make, inputs = NETS[name]
    net = make()
    net[-1].bias = nn.Parameter(torch.ones(10, dtype=torch.float64))
    assert defect(net, inputs) > 1e-2


def test_instance_norm_without_an_activation_has_nothing_left_to_average():
    for make, inputs in (CNN, IMAGES), (CNN1D, SIGNALS):
        assert float(make(norm="instance", activation="identity")(inputs).detach().abs().max()) < 1e-12


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("norm", ["batch", "weight-standardised"])
def test_each_weight_is_invariant_alone(name, norm):
    make, inputs = NETS[name]
    net = make(norm=norm)
    assert max(change(net, [p], 3.0, inputs) for p in net.parameters() if p.requires_grad) < 1e-12


@pytest.mark.parametrize("norm", ["layer", "group", "weight-standardised"])
def test_with_eps_zero_powers_of_two_change_no_bit(norm):
    for dtype in (torch.float32, torch.float64):
        assert defect(preresnet(8, norm=norm, dtype=dtype), IMAGES, 2.0**-40) == 0.0
        assert defect(preresnet(8, norm=norm, eps=1e-5, dtype=dtype), IMAGES, 2.0**-40) > 1e-2


def test_batch_norm_has_the_smallest_eps_that_is_a_normal_number():
    shrunk = {}
    for eps in (None, 1e-12):
        shrunk[eps] = defect(cnn((8,), eps=eps), IMAGES, 2.0**-22)
    assert shrunk[None] < 1e-6 < 1e-2 < shrunk[1e-12]


def test_trained_are_the_hidden_weights_and_what_is_asked_for():
    def trained(net):
        return [name for name, p in net.named_parameters() if p.requires_grad]

    assert trained(mlp((64, 16, 10))) == ["1.weight"]
    assert trained(mlp((64, 16, 10), head="trained")) == ["1.weight", "4.weight"]
    affine = mlp((64, 16, 10), norm="weight-standardised", affine=True)
    assert trained(affine) == ["1.weight", "2.weight", "2.bias"]
    assert trained(cnn1d((4, 4))) == ["2.weight", "5.weight"]


def test_strides_and_kernels():
    net = cnn((4, 4, 4), strides=(2, 1, 2), kernel=5)
    convolutions = [m for m in net if isinstance(m, nn.Conv2d)]
    assert [m.stride for m in convolutions] == [(2, 2), (1, 1), (2, 2)]
    assert {m.kernel_size for m in convolutions} == {(5, 5)}
    assert net[:3](IMAGES.float()).shape[-1] == 4  # padded


def test_signals_come_flat_or_with_channels():
    net = cnn1d((4, 8), classes=3, dtype=torch.float64)
    assert torch.equal(net(SIGNALS), net(SIGNALS.unsqueeze(1)))
    pair = cnn1d((4, 8), in_channels=2, dtype=torch.float64)
    assert torch.equal(pair(SIGNALS), pair(SIGNALS.view(12, 2, 20)))


def test_cnn1d_is_cnn_on_images_of_one_row():
    flat, image = CNN1D((4, 8), norm="none"), CNN((4, 8), norm="none", strides=(1, 2))
    with torch.no_grad():
        for p, q in zip(flat.parameters(), image.parameters(), strict=True):
            q.zero_()
            q[..., 1, :] = p if q.dim() == 4 else 0
            if q.dim() == 2:
                q.copy_(p)
    row = image(SIGNALS.view(12, 1, 1, 40))
    assert torch.allclose(row, flat(SIGNALS), rtol=0, atol=1e-12)


def test_the_seed_makes_the_net_and_moves_nothing_else():
    before = torch.get_rng_state()
    makers = [lambda seed: mlp((64, 16, 10), seed=seed), lambda seed: preresnet(8, seed=seed)]
    makers += [lambda seed: cnn1d(seed=seed)]
    for make, name in itertools.product(makers, ("first", "last")):
        a, b, c = (list(make(seed).parameters())[0 if name == "first" else -1] for seed in (1, 1, 2))
        assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


MAKERS = [lambda: mlp((64, 16, 10)), cnn, cnn1d, preresnet, resnet, transformer]


@pytest.mark.parametrize("make", MAKERS)
def test_a_net_does_not_start_the_generators_of_gpus_anew(make, monkeypatch):
    def start_anew(seed):
        raise AssertionError("a GPU's generator was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", start_anew)
    make()
    with pytest.raises(AssertionError, match="was seeded"):  # control: what torch.manual_seed does
        torch.manual_seed(0)


@pytest.mark.parametrize("make", MAKERS)
def test_the_default_device_changes_nothing(make):
    here = make()
    with torch.device("meta"):
        there, control = make(), torch.empty(1)
    assert control.device.type == "meta"
    for a, b in zip(here.state_dict().values(), there.state_dict().values(), strict=True):
        assert b.device.type == "cpu" and torch.equal(a, b)


def test_the_initial_weights_are_the_ones_they_have_always_been():
    """A change would move every figure: first entries as drawn by torch from seed 3."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, head = nn.Linear(64, 16, bias=False), nn.Linear(16, 10, bias=False)
        nn.init.normal_(head.weight, std=0.25)
    ours = list(mlp((64, 16, 10), seed=3).parameters())
    assert torch.equal(ours[0], first.weight) and torch.equal(ours[1], head.weight)


SIDE_BY_SIDE = [
    partial(MLP, norm="weight-standardised"),
    CNN1D,
]


@pytest.mark.parametrize("make", SIDE_BY_SIDE)
def test_many_nets_run_side_by_side_under_vmap(make):
    nets = [make(seed=seed) for seed in range(3)]
    inputs = SIGNALS if make is CNN1D else IMAGES
    weights, buffers = torch.func.stack_module_state([net.eval() for net in nets])
    together = torch.func.vmap(lambda p, b: torch.func.functional_call(nets[0], (p, b), (inputs,)))
    alone = torch.stack([net(inputs) for net in nets])
    assert torch.allclose(together(weights, buffers), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mlp((64, 16, 10), norm="bn"), "norm must be 'batch', 'group', 'layer'"),
        (lambda: mlp((64, 16, 10), norm="instance"), r"'instance' \(images and signals only\)"),
        (lambda: mlp((64, 16, 10), head="loose"), "head must be one of .*, got 'loose'"),
        (lambda: mlp((64, 16, 10), activation="swish"), "activation must be one of"),
        (lambda: mlp((64, 16, 10), dtype=torch.float16), "dtype must be torch.float32 or"),
        (lambda: mlp((64, 10)), r"sizes must be \(inputs, hidden, ..., classes\), got"),
        (lambda: mlp((1, 8, 2), norm="weight-standardised"), "must have at least 2 weights to an output"),
        (lambda: cnn((4, 4), strides=(1,)), "channels and strides must be as many"),
        (lambda: cnn1d(()), "channels and strides must be as many"),
        (lambda: cnn(kernel=4), r"kernel must be odd, got 4"),
        (lambda: cnn(eps=-1.0), "eps must be finite and >= 0, got -1.0"),
        (lambda: mlp((6, 0, 3)), "sizes must be >= 1, got 0"),
        (lambda: mlp((6, 4, 0)), "sizes must be >= 1, got 0"),
        (lambda: mlp((64, 16, 10), eps=1e-5, dtype=torch.bfloat16), "dtype must be torch.float32 or"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mlp((64, 16, 10), seed=1.5), "seed must be an integer, got 1.5"),
        (lambda: cnn(seed=None), "seed must be an integer, got None"),
        (lambda: mlp((64, 16.0, 10)), "sizes must be an integer, got 16.0"),
        (lambda: cnn(eps="a"), "eps must be a number or an array of numbers, got 'a'"),
    ],
)
def test_wrong_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()
