"""Verdicts on nets whose invariances are known."""

import copy
import math

import pytest
import torch
from invariance_nets import Block, classifier_batch, conv_net
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


def test_control_a_large_eps_breaks_invariance():
    report = nc.scale_invariance(
        conv_net(lambda n: nn.BatchNorm2d(n, eps=1.0)), cross_entropy, classifier_batch(16, 1, 8, 8)
    )
    assert report.tensors["0.weight"].verdict == "no" and report.tensors["0.weight"].defect > 0.05


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


def test_zero_gradients_are_undetermined():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)
            nn.init.zeros_(self.norm.weight)  # zero-initialised gain: everything upstream looks invariant

        def forward(self, x):
            return self.head(x + self.norm(self.inner(x)))

    found = verdicts(Residual().double(), classifier_batch(16, 6))
    assert found["inner.weight"] == "undetermined" and found["head.weight"] == "no"


def test_a_loss_without_gradient_determines_nothing():
    """The outputs move with the weights, but no training step would."""
    report = nc.scale_invariance(
        conv_net(nn.BatchNorm2d), lambda out, _: 0.0 * out.sum(), classifier_batch(16, 1, 8, 8)
    )
    assert {verdict.verdict for verdict in report.tensors.values()} == {"undetermined"}
    assert report.tensors["8.weight"].defect > 0.1


def test_a_bias_in_front_of_batch_norm_is_undetermined():
    assert (
        verdicts(conv_net(nn.BatchNorm2d, bias=True), classifier_batch(16, 1, 8, 8))["0.bias"]
        == "undetermined"
    )


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
