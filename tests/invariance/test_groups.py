"""Tagged parameter groups."""

import copy

import pytest
import torch
from invariance_nets import Block, LayerScale, classifier_batch, conv_net, gpt, llama, vit
from torch import nn
from torch.nn.functional import cross_entropy

import normcore as nc


def test_every_parameter_is_in_exactly_one_group():
    for model, batch in (
        (conv_net(nn.BatchNorm2d), classifier_batch(16, 1, 8, 8)),
        (Block(), classifier_batch(16, 3, 5)),
    ):
        groups = nc.param_groups(
            model, nc.scale_invariance(model, cross_entropy, batch), lr=0.1, weight_decay=1e-2
        )
        placed = [id(p) for group in groups for p in group["params"]]
        assert sorted(placed) == sorted(id(p) for p in model.parameters())
        assert all(group["lr"] == 0.1 for group in groups)
        assert [group["scale_invariant"] for group in groups][-1] is False


def test_joint_groups_train_with_exp_lr():
    model, batch = Block(), classifier_batch(16, 3, 5)
    optimizer = torch.optim.SGD(
        nc.param_groups(model, nc.scale_invariance(model, cross_entropy, batch)), lr=0.1, weight_decay=1e-2
    )
    exp_lr = nc.ExpLR(optimizer, model)
    cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
    assert exp_lr.log_scale(0) < 0


def test_a_bias_in_front_of_batch_norm_goes_with_its_weight():
    """torchvision's VGG has such biases: their sum with the weight's output must stay homogeneous."""
    models = [conv_net(nn.BatchNorm2d, bias=True)]
    models.append(copy.deepcopy(models[0]))
    batch = classifier_batch(16, 1, 8, 8)
    report = nc.scale_invariance(models[0], cross_entropy, batch)
    assert report.inert == ["0.bias", "3.bias"]
    optimizers = [
        torch.optim.SGD(nc.param_groups(model, report), lr=0.1, momentum=0.9, weight_decay=1e-2)
        for model in models
    ]
    nc.ExpLR(optimizers[1], models[1])
    for model, optimizer in zip(models, optimizers, strict=True):
        for _ in range(30):
            optimizer.zero_grad()
            cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
        model.eval()
    assert float((models[0](batch[0]) - models[1](batch[0])).detach().abs().max()) < 1e-9


IMAGES = classifier_batch(8, 1, 8, 8, dtype=torch.float32)
TOKENS = torch.randint(11, (6, 6), generator=torch.Generator().manual_seed(1)), torch.arange(6)


def grouped(model, batch, **options):
    """Group name -> names of its parameters."""
    names = {p: name for name, p in model.named_parameters()}
    groups = nc.param_groups(model, nc.scale_invariance(model, cross_entropy, batch), **options)
    assert all(g["weight_decay"] == (0.0 if g["name"] == "no_decay" else 0.1) for g in groups)
    return {group["name"]: {names[p] for p in group["params"]} for group in groups}


def test_inert_tensors_are_not_tagged_but_for_a_bias_with_its_weight():
    keys = grouped(vit(), IMAGES, weight_decay=0.1)
    assert {"blocks.0.k.bias", "blocks.1.k.bias"} <= keys["rest"]
    beside = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).double()
    keys = grouped(beside, classifier_batch(16, 6), weight_decay=0.1)
    assert keys["scale_invariant"] == {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    ("make", "batch"),
    [(gpt, TOKENS), (llama, TOKENS), (vit, IMAGES), (LayerScale, IMAGES)],
    ids=["gpt", "llama", "vit", "layer scale"],
)
def test_no_decay_for_norms_biases_and_embeddings(make, batch):
    """Against the usual rule by names and classes, which is right on these nets."""
    model = make()
    layers = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    keys = grouped(model, batch, no_decay=True, weight_decay=0.1)
    assert keys["no_decay"] == {name for name, _ in model.named_parameters()} - layers
    tables = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    keys = grouped(model, batch, no_decay=["elementwise"], weight_decay=0.1)
    assert keys["no_decay"] == {name for name, _ in model.named_parameters()} - layers - tables


class Disguised(nn.Module):
    """A matrix called bias, a gain of four dimensions called weight, a table that is no Embedding, and factors."""

    def __init__(self):
        super().__init__()
        self.bias, self.table = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(11, 6))
        self.weight, self.log_scale = nn.Parameter(torch.rand(1, 1, 1, 8)), nn.Parameter(torch.zeros(()))
        self.equalised = nn.Parameter(torch.randn(4, 8))
        self.probe = nn.Parameter(torch.randn(4))

    def forward(self, ids):
        x = (self.table[ids] @ self.bias)[:, None] * self.weight
        x = nn.functional.linear(x.tanh() * self.log_scale.exp(), 0.3 * self.equalised)
        return torch.cat([x.mean((1, 2)), (x @ self.probe).mean((1, 2))[:, None]], 1)


def test_roles_go_by_what_a_tensor_does():
    torch.manual_seed(0)
    model, batch = Disguised(), (TOKENS[0], TOKENS[1] % 5)
    keys = grouped(model, batch, no_decay=True, weight_decay=0.1)
    assert keys == {"rest": {"bias", "equalised", "probe"}, "no_decay": {"table", "weight", "log_scale"}}


def test_standardised_weights_keep_their_decay():
    class Standardised(nn.Linear):
        def forward(self, x):
            w = self.weight - self.weight.mean(1, keepdim=True)
            return nn.functional.linear(x, w / w.norm(dim=1, keepdim=True), self.bias)

    keys = grouped(
        nn.Sequential(Standardised(6, 8), nn.Tanh(), nn.Linear(8, 4)),
        classifier_batch(16, 6, dtype=torch.float32),
        no_decay=True,
        weight_decay=0.1,
    )
    assert keys["scale_invariant"] == {"0.weight"} and keys["rest"] == {"2.weight"}


def test_a_joint_group_that_loses_a_member_is_not_tagged():
    assert "joint 0" in grouped(gpt(), TOKENS, weight_decay=0.1)
    keys = grouped(gpt(), TOKENS, no_decay=True, weight_decay=0.1)
    assert set(keys) == {"no_decay", "rest"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(params=[]), r"options must leave params, name, scale_invariant alone, got \['params'\]"),
        (dict(scale_invariant=False), r"got \['scale_invariant'\]"),
        (dict(no_decay="table"), "no_decay must be a bool or roles among .*, got 'table'"),
        (dict(no_decay=["norms"]), r"no_decay must be .*, got \['norms'\]"),
    ],
)
def test_bad_options(options, message):
    model = conv_net(nn.BatchNorm2d)
    report = nc.scale_invariance(model, cross_entropy, classifier_batch(8, 1, 8, 8))
    with pytest.raises(ValueError, match=message):
        nc.param_groups(model, report, **options)


def test_a_report_of_another_model_is_refused():
    report = nc.scale_invariance(Block(), cross_entropy, classifier_batch(16, 3, 5))
    with pytest.raises(ValueError, match="report must be of this model, got one that differs in"):
        nc.param_groups(conv_net(nn.BatchNorm2d), report)
