"""What people do, one situation a test: the run equals the plain one up to rounding, or the error is clear."""

import copy
import io
import pickle
import random
import warnings

import numpy as np
import own_norms
import pytest
import torch
from helpers import VISIBLE
from nets import BATCH, CLASSES, DIM, WIDTH, batches, eval_gap, groups, logit_gap, net, pair, step
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, lr_scheduler
from torch.optim.swa_utils import AveragedModel

import normcore as nc

GAP = 1e-9
"""Float64 logits after at most 100 steps: rounding of 1e-16, amplified by the training itself."""

HARD = dict(lr=0.1, weight_decay=1e-2)
MAKE = {
    "sgd": lambda g: SGD(g, momentum=0.9, **HARD),
    "nesterov": lambda g: SGD(g, momentum=0.9, nesterov=True, **HARD),
    "adamw": lambda g: AdamW(g, lr=0.01, weight_decay=0.3),
}


def net_with(layer, *, dtype=torch.float64, seed=0):
    """Linear-norm-ReLU twice and a head, with any norm layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(DIM, WIDTH, bias=False),
        layer(),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH, bias=False),
        layer(),
        nn.ReLU(),
        nn.Linear(WIDTH, CLASSES),
    ).to(dtype)


def pair_of(model, make=MAKE["sgd"]):
    """The model and a copy, with an optimizer each."""
    models = [model, copy.deepcopy(model)]
    return models, [make(groups(m)) for m in models]


def roundings(model, make, steps, attach=nc.ExpLR):
    """The gap between plain and converted run in units of what one rounding of the start becomes."""
    models, optimizers = pair_of(model, make)
    attach(optimizers[1], models[1])
    gap = logit_gap(models, optimizers, steps, dtype=model[0].weight.dtype)
    models, optimizers = pair_of(model, make)
    with torch.no_grad():
        models[1][0].weight.mul_(1 + 2 * torch.finfo(torch.float32).eps)
    return gap / logit_gap(models, optimizers, steps, dtype=model[0].weight.dtype)


# ---------------------------------------------------------------- norm layers: 09, 21, A2, A11, F1


OWN = {
    "std + eps": lambda: own_norms.BesideTheRoot(WIDTH, eps=1e-2),
    "own BatchNorm": lambda: own_norms.Batch(WIDTH, eps=1e-2),
    "frozen statistics": lambda: own_norms.Frozen(WIDTH, eps=1e-2),
    "a block's own eps": lambda: own_norms.Block(WIDTH, eps=1e-2),
    "torch's RMSNorm": lambda: nn.RMSNorm(WIDTH, eps=1e-2),
    "torch's RMSNorm, default": lambda: nn.RMSNorm(WIDTH),
    "BatchNorm, cumulative": lambda: nn.BatchNorm1d(WIDTH, eps=1e-2, momentum=None),
    "BatchNorm, no statistics": lambda: nn.BatchNorm1d(WIDTH, eps=1e-2, track_running_stats=False),
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_norm_layers_of_any_class(name, optimizer):
    models, optimizers = pair_of(net_with(OWN[name]), MAKE[optimizer])
    nc.ExpLR(optimizers[1], models[1])
    assert logit_gap(models, optimizers, 60) < GAP


@pytest.mark.parametrize("layer", [own_norms.RootMeanSquare, own_norms.OneMore])
def test_norm_layers_of_language_models(layer):
    """They compute in float32: equal up to its rounding, where an eps that stayed would be seen."""
    model = net_with(lambda: layer(WIDTH, eps=1e-2))
    assert roundings(model, MAKE["adamw"], 30) < 10
    ignorant = roundings(model, MAKE["adamw"], 30, attach=lambda optimizer, model: nc.ExpLR(optimizer))
    assert ignorant > 1e3


def test_language_models_of_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    models = [transformers.LlamaForCausalLM(config).double()]
    models.append(copy.deepcopy(models[0]))
    names = ["model.embed_tokens.weight"]
    for i in range(2):
        names += [f"model.layers.{i}.self_attn.o_proj.weight", f"model.layers.{i}.mlp.down_proj.weight"]
    optimizers = []
    for model in models:
        stream = {"params": [model.get_parameter(n) for n in names], "scale_invariant": True}
        rest = {"params": [p for n, p in model.named_parameters() if n not in names]}
        optimizers.append(AdamW([stream, rest], lr=1e-3, weight_decay=0.3))
    nc.ExpLR(optimizers[1], models[1])
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        tokens = torch.randint(11, (2, 8), generator=generator)
        outputs = []
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            output = model(input_ids=tokens, labels=tokens, use_cache=False)
            output.loss.backward()
            optimizer.step()
            outputs.append(output.logits.detach())
    assert float((outputs[0] - outputs[1]).abs().max()) < 1e-5  # its norms compute in float32


REFUSED = {
    "an eps out of reach": (lambda: own_norms.Hidden(WIDTH, 1e-5), r"does not follow is '1' \(Hidden\)"),
    "statistics of another name": (
        lambda: own_norms.Batch(WIDTH, mean="moving_mean", variance="moving_variance"),
        r"buffer '[14].moving_(mean|variance)' changed by",
    ),
    "no norm at all": (nn.Identity, r"does not follow is '6' \(Linear\)"),
    "noise": (lambda: nn.Sequential(Noise(), nn.LayerNorm(WIDTH)), r"does not follow is '1.0' \(Noise\)"),
}


class Noise(nn.Module):
    """Adds what does not scale."""

    def forward(self, x):
        return x + 0.1 * torch.sin(torch.arange(x.shape[-1], dtype=x.dtype))


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("training", [True, False])
def test_what_does_not_follow_is_refused_at_the_first_forward_pass(name, training):
    layer, message = REFUSED[name]
    model = net_with(layer)
    optimizer = MAKE["sgd"](groups(model))
    nc.ExpLR(optimizer, model)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model.train(training)
    if not training and name == "statistics of another name":
        message = r"does not follow is '1' \(Batch\)"
    with pytest.raises(ValueError, match=message) as caught:
        model(next(batches(1))[0])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert "tagged group 0" in str(caught.value) and "0.weight, 3.weight" in str(caught.value)


def test_a_head_that_is_tagged_is_refused():
    model = nn.Sequential(nn.Linear(DIM, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES, bias=False))
    nc.ExpLR(SGD([{"params": [model[2].weight], "scale_invariant": True}], **HARD), model)
    with pytest.raises(ValueError, match="output 0 changed by 0.5 .* no normalization removes the scale"):
        model(next(batches(1, dtype=torch.float32))[0])


def test_a_fresh_bias_outside_the_group_is_refused_though_it_is_zero():
    model = net_with(lambda: nn.LayerNorm(WIDTH))
    model[0].bias = nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64))
    nc.ExpLR(MAKE["sgd"](groups(model)), model)
    with pytest.raises(ValueError, match=r"does not follow is '0' \(Linear\).* biases and shortcuts"):
        model(next(batches(1))[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norm_in_half_precision_keeps_its_function(dtype):
    """The default eps of half precision is that of float32."""
    model = net_with(lambda: nn.RMSNorm(WIDTH), dtype=dtype)
    optimizer = SGD(groups(model), lr=0.5, weight_decay=0.5)
    nc.ExpLR(optimizer, model)
    x = next(batches(1, dtype=dtype))[0]
    with torch.no_grad():
        before = model(x).double()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.param_groups[1].update(lr=0.0)
        optimizer.step()
        after = model(x).double()
        assert model[1].eps == torch.finfo(torch.float32).eps / 0.75**2
        model[1].eps = torch.finfo(dtype).eps / 0.75**2
        guessed = model(x).double()
    gaps = [float((output - before).norm() / before.norm()) for output in (after, guessed)]
    assert gaps[0] < 2 * torch.finfo(dtype).eps and gaps[1] > 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("part", ["norms", "model"])
def test_frozen_batch_norm(part):
    models, optimizers = pair(MAKE["sgd"], eps=1e-2)
    with torch.no_grad():
        for model in models:
            for x, _ in batches(3):
                model(x)
            for module in model if part == "norms" else [model]:
                module.eval() if part == "model" or isinstance(module, nn.BatchNorm1d) else None
    nc.ExpLR(optimizers[1], models[1])
    gap = max(
        float((step(models[0], optimizers[0], b) - step(models[1], optimizers[1], b)).abs().max())
        for b in batches(60)
    )
    assert gap < GAP
    assert optimizers[1].param_groups[0]["exp_lr"]["x"] < 0.9


def test_half_precision_models_train():
    """Halving is exact in them too: the trial has an answer where a measured defect has none."""
    for dtype in (torch.bfloat16, torch.float16):
        model = net("layer", dtype=dtype)
        optimizer = SGD(groups(model), lr=0.05, weight_decay=0.1)
        exp_lr = nc.ExpLR(optimizer, model)
        for batch in batches(10, dtype=dtype):
            assert step(model, optimizer, batch).isfinite().all()
        assert exp_lr.log_scale() < 0


# ---------------------------------------------------------------- which module is called: F2, 17, 18, 39


class Around(nn.Module):
    """A trainer's module: it has a net, and may be called itself or not."""

    def __init__(self, inner):
        super().__init__()
        self.net = inner

    def forward(self, batch):
        return self.net(batch["x"])


class Two(nn.Module):
    """Two parts that are called one after the other, and never together."""

    def __init__(self, inner):
        super().__init__()
        self.first, self.second = inner[:2], inner[2:]


def around(name, inner):
    """What ExpLR is given, and what is called."""
    if name == "wrapper that is called":
        outer = Around(inner)
        return outer, lambda x: outer({"x": x})
    if name == "wrapper that is never called":
        return Around(inner), inner
    if name == "inner module":
        outer = Around(inner)
        return inner, lambda x: outer({"x": x})
    if name == "keywords":
        inner.forward = (lambda forward: lambda *, x: forward(x))(inner.forward)
        return inner, lambda x: inner(x=x)
    compiled = torch.compile(inner, backend="eager")
    return (compiled if name == "compiled" else inner), compiled


@pytest.mark.parametrize(
    "name",
    [
        "wrapper that is called",
        "wrapper that is never called",
        "inner module",
        "keywords",
        "compiled",
        "compiled afterwards",
    ],
)
def test_whatever_is_called(name):
    models, optimizers = pair(MAKE["sgd"], eps=1e-2)
    given, called = around(name, models[1])
    nc.ExpLR(optimizers[1], given)
    for x, y in batches(40):
        outputs = []
        for call, optimizer in zip((models[0], called), optimizers, strict=True):
            optimizer.zero_grad()
            outputs.append(call(x))
            cross_entropy(outputs[-1], y).backward()
            optimizer.step()
        assert float((outputs[0] - outputs[1]).detach().abs().max()) < GAP
    models[0].eval(), given.eval()
    assert float((models[0](x) - called(x)).detach().abs().max()) < GAP
    assert models[1][1].eps > 1.05e-2


def test_data_parallel_wrappers(tmp_path):
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        models, optimizers = pair(MAKE["sgd"], eps=1e-2)
        wrapped = nn.parallel.DistributedDataParallel(models[1])
        nc.ExpLR(optimizers[1], wrapped)
        assert logit_gap([models[0], wrapped], optimizers, 30) < GAP
    finally:
        dist.destroy_process_group()


def test_a_model_that_is_never_called_is_refused_before_the_second_step():
    model = net(eps=1e-2)
    outer = Two(model)
    optimizer = MAKE["sgd"](groups(model))
    exp_lr = nc.ExpLR(optimizer, outer)
    for t, (x, y) in enumerate(batches(2)):
        optimizer.zero_grad()
        cross_entropy(outer.second(outer.first(x)), y).backward()
        before = copy.deepcopy(model.state_dict())
        if t == 0:
            optimizer.step()  # with weight decay, which is the same
            assert exp_lr.scale() == 1.0
            continue
        with pytest.raises(ValueError, match="model must be called before the second step"):
            optimizer.step()
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_functional_call_of_other_weights_does_not_count():
    models, optimizers = pair(MAKE["sgd"], eps=1e-2)
    nc.ExpLR(optimizers[1], models[1])
    others = {name: torch.randn_like(p) for name, p in models[1].named_parameters()}
    torch.func.functional_call(models[1], others, next(batches(1))[0])
    for model in models:  # the statistics of that call are no business of this test
        model[1].reset_running_stats(), model[4].reset_running_stats()
    assert logit_gap(models, optimizers, 30) < GAP


def test_a_model_that_lacks_the_weights_is_refused():
    optimizer = MAKE["sgd"](groups(net()))
    with pytest.raises(ValueError, match="model must hold all tagged weights"):
        nc.ExpLR(optimizer, net())
    assert "exp_lr" not in optimizer.param_groups[0]
    nc.ExpLR(optimizer)  # the refusal has left nothing behind


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_first_forward_pass_may_be_a_validation(context):
    models, optimizers = pair(MAKE["sgd"], eps=1e-2)
    nc.ExpLR(optimizers[1], models[1])
    with context():
        assert eval_gap(models) == 0.0
    assert logit_gap(models, optimizers, 30) < GAP


class Choosy(nn.Module):
    """Leaves a branch out while it trains its first steps, like a net with auxiliary outputs or dropped layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.branch = nn.Linear(DIM, WIDTH, bias=False), nn.Linear(WIDTH, CLASSES)
        self.norm, self.other = nn.LayerNorm(WIDTH, eps=1e-2), nn.LayerNorm(WIDTH, eps=1e-2)
        self.skips = True

    def forward(self, x):
        z = self.stem(x)
        h = self.norm(z)
        return self.branch(h if self.skips and self.training else h + self.other(z))


def choosy():
    """Two of them, one converted."""
    models = [Choosy().double(), Choosy().double()]
    optimizers = []
    for model in models:
        rest = [p for name, p in model.named_parameters() if name != "stem.weight"]
        optimizers.append(
            SGD([{"params": [model.stem.weight], "scale_invariant": True}, {"params": rest}], **HARD)
        )
    nc.ExpLR(optimizers[1], models[1])
    return models, optimizers


def test_layers_that_the_first_pass_leaves_out():
    models, optimizers = choosy()
    eval_gap(models)  # reaches them all
    logit_gap(models, optimizers, 5)
    for model in models:
        model.skips = False
    assert logit_gap(models, optimizers, 30, skip=5) < GAP

    models, optimizers = choosy()
    for batch in batches(2):
        step(models[1], optimizers[1], batch)
    models[1].skips = False
    with pytest.raises(ValueError, match="norm layer 'other' must take part in a forward pass before"):
        models[1](batch[0])


def test_the_trial_costs_two_passes_and_leaves_no_trace():
    class Counted(nn.Sequential):
        def forward(self, x):
            calls.append(self.training)
            return super().forward(x)

    calls = []
    models, optimizers = pair(MAKE["sgd"])
    models = [Counted(*model, nn.Dropout(0.5)) for model in models]
    nc.ExpLR(optimizers[1], models[1])
    draws = []
    for model in models:
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        calls.clear()
        outputs = [model(x).detach() for x, _ in batches(2)]
        draws.append((*outputs, torch.rand(3), torch.tensor([random.random(), np.random.rand()])))
        model.eval()
        outputs = [model(x).detach() for x, _ in batches(2)]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
    assert calls == [True, True, True, True, False, False, False, False]  # a trial in each mode
    for key, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[key]), key
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in models[1].modules())


def test_under_autocast():
    """Its cache of cast weights must not be asked in the trial."""
    runs = []
    for attach in (False, True):
        model = net("layer", dtype=torch.float32, eps=1e-2)
        optimizer = MAKE["sgd"](groups(model))
        if attach:
            nc.ExpLR(optimizer, model)
        for x, y in batches(3, dtype=torch.float32):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                output = model(x)
            cross_entropy(output.float(), y).backward()
            assert all(p.grad is not None for p in model.parameters())
            optimizer.step()
        runs.append((output.detach().float(), model[1].eps))
    assert float((runs[0][0] - runs[1][0]).abs().max()) < 0.05 and runs[1][1] > 1.001e-2
