"""Verdicts on nets whose invariances are known."""

import copy
import math

import pytest
import torch
from invariance_nets import (
    Block,
    LayerScale,
    OwnBatchNorm,
    OwnRMSNorm,
    ZeroInit,
    classifier_batch,
    conv_net,
    gpt,
    llama,
    plain_copy,
    times_ten,
    vit,
)
from torch import nn
from torch.nn.functional import cross_entropy

import normcore as nc


class QKNorm(nn.Module):
    """Attention scores from a fused qkv whose q and k are normalized, and v is not."""

    def __init__(self, dim=8):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, 4)
        self.norm_q, self.norm_k = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.double()

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head((torch.softmax(self.norm_q(q) @ self.norm_k(k).mT, -1) @ v).mean(1))


def verdicts(model, batch, **options):
    """Name -> verdict."""
    return {
        name: v.verdict
        for name, v in nc.scale_invariance(model, cross_entropy, batch, **options).tensors.items()
    }


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, lambda n: nn.GroupNorm(2, n), lambda n: nn.GroupNorm(1, n)])
def test_conv_nets(norm):
    found = verdicts(conv_net(norm), classifier_batch(16, 1, 8, 8))
    assert found["0.weight"] == found["3.weight"] == "yes"
    assert found["8.weight"] == "no" and found["4.weight"] == "no"
    assert "yes" not in {found[name] for name in ("1.weight", "1.bias", "4.weight", "4.bias", "8.bias")}


def test_a_model_in_eval_mode_is_tested_with_batch_statistics():
    batch = classifier_batch(16, 1, 8, 8)
    assert verdicts(conv_net(nn.BatchNorm2d).eval(), batch) == verdicts(
        conv_net(nn.BatchNorm2d).train(), batch
    )


def test_control_without_norm_nothing_is_invariant():
    assert "yes" not in verdicts(conv_net(lambda n: nn.Identity()), classifier_batch(16, 1, 8, 8)).values()


@pytest.mark.parametrize("eps", [1e-5, 1.0])
def test_eps_blurs_and_is_told_apart_from_no(eps):
    model, batch = conv_net(lambda n: nn.BatchNorm2d(n, eps=eps)), classifier_batch(16, 1, 8, 8)
    report = nc.scale_invariance(model, cross_entropy, batch)
    assert report.tensors["0.weight"].verdict == ("yes" if eps < 1e-3 else "yes but for eps")
    assert (report.tensors["0.weight"].defect > 0.05) == (eps == 1.0)
    assert report.tensors["0.weight"].exact < 1e-12 and report.invariant == ["0.weight", "3.weight"]
    assert report.tensors["8.weight"].verdict == "no" and model[1].eps == eps


def test_defect_measures_eps():
    def defect(eps):
        return (
            nc.scale_invariance(
                conv_net(lambda n: nn.BatchNorm2d(n, eps=eps)), cross_entropy, classifier_batch(16, 1, 8, 8)
            )
            .tensors["0.weight"]
            .defect
        )

    assert defect(1e-6) / defect(1e-5) == pytest.approx(0.1, rel=0.05)
    assert defect(1e-30) < 1e-12


def test_layer_norm_mlp_with_and_without_bias():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8),
        nn.LayerNorm(8),
        nn.ReLU(),
        nn.Linear(8, 8, bias=False),
        nn.LayerNorm(8),
        nn.Linear(8, 4),
    ).double()
    report = nc.scale_invariance(model, cross_entropy, classifier_batch(16, 6))
    assert report.tensors["3.weight"].verdict == "yes"
    assert report.tensors["0.weight"].verdict == "no"  # its bias breaks it alone
    assert {frozenset(g.names) for g in report.groups.values()} >= {frozenset({"0.weight", "0.bias"})}


@pytest.mark.parametrize("size", [0.0, 2e-3])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_zero_or_tiny_bias_hides_nothing(size, groups):
    model = conv_net(lambda n: nn.GroupNorm(groups, n), bias=True)
    for layer in (0, 3):
        nn.init.normal_(model[layer].bias, std=size) if size else nn.init.zeros_(model[layer].bias)
    report = nc.scale_invariance(model, cross_entropy, classifier_batch(16, 1, 8, 8))
    assert report.tensors["0.weight"].verdict == report.tensors["3.weight"].verdict == "no"
    pairs = [{"0.weight", "0.bias"}, {"3.weight", "3.bias"}]
    assert [set(g.names) for g in report.groups.values()] == pairs  # disjoint, and nothing else


class PreResNet(nn.Module):
    """x + conv(ReLU(norm(x))) with norms without affine part; the head is frozen."""

    def __init__(self, depth=3, width=8):
        super().__init__()
        torch.manual_seed(0)
        convs = [nn.Conv2d(c, width, 3, padding=1, bias=False) for c in [1] + [width] * depth]
        self.stem, self.convs = convs[0], nn.ModuleList(convs[1:])
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in range(depth + 1))
        self.head = nn.Linear(width, 4).requires_grad_(False)
        self.double()

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = x + conv(torch.relu(norm(x)))
        return self.head(torch.relu(self.norms[-1](x)).mean((2, 3)))


def test_pre_activation_resnet_is_invariant_only_jointly():
    model = PreResNet()
    report = nc.scale_invariance(model, cross_entropy, classifier_batch(16, 1, 8, 8))
    assert {v.verdict for v in report.tensors.values()} == {"no"} and not report.invariant
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert [set(g.names) for g in report.groups.values()] == [trainable]


def test_weight_normalized_layers():
    torch.manual_seed(0)
    parametrized = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(parametrized(nn.Linear(6, 8)), nn.Tanh(), parametrized(nn.Linear(8, 4))).double()
    found = verdicts(model, classifier_batch(16, 6))
    for layer in (0, 2):
        assert found[f"{layer}.parametrizations.weight.original1"] == "yes"
        assert found[f"{layer}.parametrizations.weight.original0"] == "no"


def test_pre_norm_transformer_is_invariant_jointly():
    report = nc.scale_invariance(Block(), cross_entropy, classifier_batch(16, 3, 5))
    stream = {
        "embed.weight",
        "embed.bias",
        "attention.out_proj.weight",
        "attention.out_proj.bias",
        "down.weight",
        "down.bias",
    }
    assert stream in [set(group.names) for group in report.groups.values()]
    assert not {name for name, v in report.tensors.items() if v.verdict == "yes"}
    assert not any("head" in name for group in report.groups.values() for name in group.names)
    alone = nc.scale_invariance(
        Block(),
        cross_entropy,
        classifier_batch(16, 3, 5),
        groups={"stream": sorted(stream), "part": sorted(stream)[:-1]},
    )
    assert alone.groups["stream"].verdict == "yes" and alone.groups["part"].verdict == "no"


def test_zero_biases_are_found_in_the_stream():
    model = Block()
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
    report = nc.scale_invariance(model, cross_entropy, classifier_batch(16, 3, 5))
    parts = ("embed", "attention.out_proj", "down")
    stream = {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert [set(group.names) for group in report.groups.values()] == [stream]


def test_control_without_the_final_norm_the_stream_is_not():
    report = nc.scale_invariance(Block(final_norm=False), cross_entropy, classifier_batch(16, 3, 5))
    assert not any("embed.weight" in group.names for group in report.groups.values())


def test_fused_qkv_is_not_invariant_as_a_whole():
    assert verdicts(QKNorm(), classifier_batch(16, 3, 8))["qkv.weight"] == "no"


def test_torchvision_resnet18():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    found = verdicts(resnet18(num_classes=4), classifier_batch(8, 3, 32, 32, dtype=torch.float32))
    convolutions = {name for name in found if "conv" in name or "downsample.0" in name}
    assert len(convolutions) == 20 and {found[name] for name in convolutions} == {"yes"}
    assert "yes" not in {verdict for name, verdict in found.items() if name not in convolutions}
    assert found["fc.weight"] == "no"


def test_zero_initialised_branches_are_decided_nearby():
    report = nc.scale_invariance(ZeroInit(), cross_entropy, classifier_batch(8, 1, 8, 8, dtype=torch.float32))
    convolutions = {name for name, v in report.tensors.items() if v.role == "matrix" and "head" not in name}
    assert set(report.invariant) == convolutions and len(convolutions) == 5
    assert {v.verdict for v in report.tensors.values()} == {"yes", "no"}
    assert math.isnan(report.tensors["branches.0.0.weight"].cosine)


def test_a_loss_without_gradient_determines_nothing():
    """The outputs move with the weights, but no training step would."""
    report = nc.scale_invariance(
        conv_net(nn.BatchNorm2d), lambda out, _: 0.0 * out.sum(), classifier_batch(16, 1, 8, 8)
    )
    assert {verdict.verdict for verdict in report.tensors.values()} == {"undetermined"}
    assert report.tensors["8.weight"].defect > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_in_front_of_batch_norm_is_undetermined_and_inert(dtype):
    model, batch = conv_net(nn.BatchNorm2d, bias=True).to(dtype), classifier_batch(16, 1, 8, 8, dtype=dtype)
    report = nc.scale_invariance(model, cross_entropy, batch)
    assert report.inert == ["0.bias", "3.bias"] and math.isnan(report.tensors["0.bias"].defect)
    assert report.tensors["0.bias"].verdict == "undetermined" and "inert" in str(report)


def test_cosine_is_that_of_autograd():
    model, (x, y) = conv_net(nn.BatchNorm2d), classifier_batch(16, 1, 8, 8)
    report = nc.scale_invariance(model, cross_entropy, (x, y))
    cross_entropy(model(x), y).backward()
    for name, p in model.named_parameters():
        if not math.isnan(report.tensors[name].cosine):
            expected = float(torch.cosine_similarity(p.grad.flatten(), p.detach().flatten(), dim=0))
            assert report.tensors[name].cosine == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = conv_net(nn.BatchNorm2d)
    model.insert(6, nn.Dropout(0.5))
    batch = classifier_batch(16, 1, 8, 8)
    cross_entropy(model(batch[0]), batch[1]).backward()
    model.eval()
    model[1].train()  # a mixed mode
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    grads = [p.grad.clone() for p in model.parameters()]
    random_state = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="no loss today"):
            nc.scale_invariance(model, lambda *_: (_ for _ in ()).throw(RuntimeError("no loss today")), batch)
    else:
        nc.scale_invariance(model, cross_entropy, batch)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(random_state, torch.get_rng_state())


def test_the_report_prints_a_table():
    text = str(nc.scale_invariance(Block(), cross_entropy, classifier_batch(16, 3, 5)))
    assert "embed.weight" in text and "jointly: " in text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(batch=torch.ones(3)), TypeError, r"batch must be a pair \(x, y\), got Tensor"),
        (dict(groups={"g": []}), ValueError, r"groups must map to lists of names, got \[\] for 'g'"),
        (
            dict(groups={"g": "0.weight"}),
            ValueError,
            "groups must map to lists of names, got '0.weight' for 'g'",
        ),
        (
            dict(groups={"g": ["nowhere"]}),
            ValueError,
            r"groups must name trainable parameters of the model, got \['nowhere'\]",
        ),
        (
            dict(batch=(torch.full((4, 1, 8, 8), math.nan).double(), torch.zeros(4).long())),
            ValueError,
            "finite outputs",
        ),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        nc.scale_invariance(
            **{
                "model": conv_net(nn.BatchNorm2d),
                "loss_fn": cross_entropy,
                "batch": classifier_batch(4, 1, 8, 8),
                **arguments,
            }
        )


def test_a_frozen_model_is_refused():
    with pytest.raises(ValueError, match="model must have a trainable parameter, got none"):
        nc.scale_invariance(
            conv_net(nn.BatchNorm2d).requires_grad_(False), cross_entropy, classifier_batch(4, 1, 8, 8)
        )


IMAGES = classifier_batch(8, 1, 8, 8, dtype=torch.float32)
TOKENS = torch.randint(11, (6, 6), generator=torch.Generator().manual_seed(1))
SIGNALS = classifier_batch(16, 6, dtype=torch.float32)
PRACTICE = {
    "llama": (llama, TOKENS),
    "llama with qk-norm": (lambda: llama(qk_norm=True), TOKENS),
    "gpt with literal eps": (gpt, TOKENS),
    "vit with four classes": (vit, IMAGES[0]),
    "layer scale": (LayerScale, IMAGES[0]),
    "zero-initialised branches": (ZeroInit, IMAGES[0]),
    "own BatchNorm": (
        lambda: nn.Sequential(nn.Linear(6, 8), OwnBatchNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4)),
        SIGNALS[0],
    ),
    "LSTM behind a norm": (
        lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.LayerNorm(8), Last(nn.LSTM(8, 4))),
        SIGNALS[0],
    ),
}


class Last(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


@pytest.mark.parametrize("name", PRACTICE)
def test_what_people_train_against_multiplying_by_ten(name):
    """Every verdict and group against the naive test at other random values, in float64 with eps next to 0."""
    make, x = PRACTICE[name]
    torch.manual_seed(0)
    model = make()
    y = torch.randint(4, (len(x),))
    report = nc.scale_invariance(model, cross_entropy, (x, y))
    oracle, wide = plain_copy(model), x.double() if x.is_floating_point() else x
    exact = 3e-4 if "literal" in name else 1e-9  # that eps is out of the oracle's reach
    for tensor, v in report.tensors.items():
        change = times_ten(oracle, wide, {tensor: 1})
        holds = v.verdict.startswith("yes") or v.inert
        assert v.verdict != "undetermined" or v.inert, tensor
        assert change < exact if holds else change > 10 * exact, tensor
    for group in report.groups.values():
        assert times_ten(oracle, wide, dict.fromkeys(group.names, 1)) < exact
        for part in group.names:  # control: none may be left out
            rest = dict.fromkeys(set(group.names) - {part}, 1)
            assert times_ten(oracle, wide, rest) > 10 * exact, part
    expected = {"llama": 1, "llama with qk-norm": 1, "gpt with literal eps": 1, "vit with four classes": 1}
    expected |= {
        "layer scale": 2,
        "zero-initialised branches": 2,
        "own BatchNorm": 0,
        "LSTM behind a norm": 0,
    }
    assert len(report.groups) == expected[name]


def test_small_values_are_blurred_by_eps_and_say_so():
    report = nc.scale_invariance(llama(std=0.005), cross_entropy, (TOKENS, torch.arange(6)))
    (stream,) = report.groups.values()
    assert stream.verdict == "yes but for eps" and stream.defect > 1e-2 > 1e-4 > stream.exact
    parts = {"embed.weight", *(f"blocks.{b}.{n}.weight" for b in (0, 1) for n in ("o", "down"))}
    assert set(stream.names) == parts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_tested_in_a_float32_copy(dtype):
    model, (x, y) = conv_net(nn.BatchNorm2d).float(), classifier_batch(16, 1, 8, 8, dtype=torch.float32)
    expected = verdicts(model, (x, y))
    own = list(model.to(dtype).parameters())
    assert verdicts(model, (x.to(dtype), y)) == expected
    assert all(p is q and p.dtype == dtype for p, q in zip(model.parameters(), own, strict=True))


def test_frozen_batch_norms_are_left_frozen():
    """The mode that trains decides: with frozen statistics a weight in front is not invariant."""
    model, batch = conv_net(nn.BatchNorm2d), classifier_batch(16, 1, 8, 8)
    for module in model:
        module.train(not isinstance(module, nn.BatchNorm2d))
    assert "yes" not in verdicts(model, batch).values()
    assert verdicts(model.eval(), batch)["0.weight"] == "yes"  # nobody trains in eval mode


class Stray(nn.Module):
    """Keeps its parameter in a list beside the module."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.kept = [self.weight]

    def forward(self, x):
        return x * self.kept[0]


class Noise(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self, size):
        super().__init__()
        self.generator, self.size = torch.Generator().manual_seed(0), size

    def forward(self, x):
        return x + self.size * torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


class SetsItself(nn.Module):
    """Sets its gain from the data at its first pass, as ActNorm does."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))
        self.register_buffer("ready", torch.tensor(False))

    def forward(self, x):
        if not self.ready:
            self.gain.data.copy_(1 / x.std(0))
            self.ready.fill_(True)
        return self.gain * x


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Noise(1.0), "must compute the same function twice"),
        (Noise(1e-3), "must compute the same function twice"),
        (SetsItself(), "must not set its parameters in a forward pass"),
        (Stray(), "must take its parameters from its modules, got '2.weight' kept elsewhere too"),
    ],
)
def test_functions_that_change_or_hide_are_refused(layer, message):
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), layer, nn.Linear(8, 4))
    with pytest.raises(ValueError, match=message):
        nc.scale_invariance(model, cross_entropy, SIGNALS)
    with pytest.raises(ValueError, match=message):
        nc.scaling_symmetries(model, SIGNALS)


class Stairs(nn.Module):
    """Flat almost everywhere in `steps`, which no gradient sees."""

    def __init__(self):
        super().__init__()
        self.steps, self.first = nn.Parameter(torch.rand(8) + 1.0), nn.Linear(6, 8, bias=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.norm(self.first(x)) * torch.floor(4 * self.steps))


def test_what_only_gradients_take_for_inert_is_not():
    torch.manual_seed(0)
    report = nc.scale_invariance(Stairs(), cross_entropy, SIGNALS)
    assert report.inert == [] and report.tensors["steps"].verdict == "undetermined"
    assert report.tensors["first.weight"].verdict == "yes"


def test_dropout_and_set_up_layers_are_fine():
    layer = SetsItself()
    model = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.LayerNorm(8), nn.Dropout(0.3), layer, nn.Linear(8, 4)
    )
    model(SIGNALS[0])
    assert verdicts(model, SIGNALS)["0.weight"] == "yes"


class Scores(dict):
    """As the outputs of Hugging Face."""

    __getattr__ = dict.__getitem__


class Keyword(nn.Module):
    """Called as model(**batch), with labels among it, and answers with a structure."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs=None, labels=None):
        logits = self.net(inputs)
        return Scores(loss=cross_entropy(logits, labels), logits=logits, hidden=[self.net[0](inputs)])


def test_a_batch_of_keywords_needs_no_wrapper():
    torch.manual_seed(0)
    net, (x, y) = nn.Sequential(nn.Linear(6, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 4)), SIGNALS
    expected = {f"net.{name}": verdict for name, verdict in verdicts(net, (x, y)).items()}
    model = Keyword(net)
    assert verdicts(model, {"inputs": x, "labels": y}) == expected
    assert verdicts(model, ({"inputs": x, "labels": y}, y)) == expected
    assert verdicts(model, (x, y), forward=lambda m, x: m(inputs=x, labels=y).logits) == expected
    part = verdicts(model, (x, y), forward=lambda m, x: m.net[0](x))  # control: no norm behind it
    assert part["net.0.weight"] == "no"


def test_inside_inference_mode_and_without_gradients():
    model, batch = conv_net(nn.BatchNorm2d), classifier_batch(16, 1, 8, 8)
    expected = verdicts(model, batch)
    with torch.no_grad():
        assert verdicts(model, batch) == expected
    with torch.inference_mode():
        assert verdicts(model, tuple(t.clone() for t in batch)) == expected


def test_hooks_of_an_optimizer_on_the_tensors_are_not_called():
    model, batch = conv_net(nn.BatchNorm2d), classifier_batch(16, 1, 8, 8)
    expected, called = nc.scale_invariance(model, cross_entropy, batch), []
    for p in model.parameters():
        p.register_hook(lambda g: called.append(1) or 7 * g.sign())
    found = nc.scale_invariance(model, cross_entropy, batch)
    assert not called and str(found) == str(expected)


def test_complex_sparse_tied_and_unused_tensors():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(11, 6, sparse=True)
            self.wave = nn.Parameter(torch.randn(6, 6, dtype=torch.complex64))
            self.norm, self.head, self.unused = OwnRMSNorm(6), nn.Linear(6, 11, bias=False), nn.Linear(2, 2)
            self.twin = self.head.weight

        def forward(self, ids):
            x = self.table(ids)
            z = (x.to(self.wave.dtype) @ self.wave).real.to(x.dtype)
            return (self.norm(z) @ self.twin.T + self.head(self.norm(z)))[:, 0]

    torch.manual_seed(0)
    report = nc.scale_invariance(Odd(), cross_entropy, (TOKENS, torch.randint(11, (6,))))
    assert report.invariant == ["wave", "table.weight"] and report.inert == ["unused.weight", "unused.bias"]
    assert "head.weight" not in report.tensors and report.tensors["twin"].verdict == "no"
    assert report.tensors["table.weight"].role == "table"


def test_checkpointed_blocks_leave_no_trace():
    class Again(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)

    net, batch = conv_net(nn.BatchNorm2d), classifier_batch(16, 1, 8, 8)
    state = copy.deepcopy(net.state_dict())
    expected = {f"net.{name}": verdict for name, verdict in verdicts(net, batch).items()}
    assert verdicts(Again(net), batch) == expected
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in state.items())


def test_low_rank_adapters_are_not_mistaken():
    """Zero-initialised B, and A, beside a frozen weight."""

    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(6, 8).requires_grad_(False)
            self.a, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.zeros(8, 2))

        def forward(self, x):
            return self.base(x) + x @ self.a.T @ self.b.T

    model = nn.Sequential(Adapted(), nn.LayerNorm(8), nn.Linear(8, 4))
    assert "yes" not in verdicts(model, SIGNALS).values()
    found = nc.scaling_symmetries(model, SIGNALS)
    assert [1, -1, 0, 0, 0, 0] in found.exponents.tolist()


def test_four_reverse_passes_for_all_tensors(monkeypatch):
    """The cost: forward and reverse passes do not grow with the number of tensors that are invariant alone."""
    full, forwards, grad = [], [], torch.autograd.grad
    layers = [
        m for _ in range(8) for m in (nn.Linear(8, 8, bias=False), nn.LayerNorm(8, elementwise_affine=False))
    ]
    model = nn.Sequential(*layers, nn.Linear(8, 4, bias=False))
    model.register_forward_pre_hook(lambda *_: forwards.append(1))

    def counted(outputs, inputs, *args, **kwargs):
        full.append(len(inputs) == 9 and kwargs.get("retain_graph"))
        return grad(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    x, y = torch.randn(16, 8), torch.randint(4, (16,))
    report = nc.scale_invariance(model, cross_entropy, (x, y))
    assert len(report.invariant) == 8 and sum(full) == 4 and len(forwards) <= 6
