"""What people do, one situation a test: the run equals the plain one up to rounding, or the error is clear."""

import contextlib
import copy
import io
import pickle
import random

import numpy as np
import own_norms
import pytest
import torch
import torch.utils.checkpoint
from helpers import VISIBLE
from nets import CLASSES, DIM, WIDTH, batches, eval_gap, groups, logit_gap, net, pair, step
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
    assert logit_gap(models, optimizers, 30) < GAP


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weights_that_a_layer_standardises(optimizer, beside):
    """Its input has no scale, and its eps must follow all the same."""

    def layer(inputs):
        return own_norms.Standardised(inputs, WIDTH, eps=1e-2, beside=beside)

    torch.manual_seed(0)
    parts = [layer(DIM), nn.Identity(), nn.ReLU(), layer(WIDTH), nn.Identity(), nn.ReLU()]
    models, optimizers = pair_of(nn.Sequential(*parts, nn.Linear(WIDTH, CLASSES)).double(), MAKE[optimizer])
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    assert logit_gap(models, optimizers, 30) < GAP
    assert models[1][0].eps > 1.05e-2
    exp_lr.detach()
    assert models[1][0].eps == 1e-2 and eval_gap(models) < GAP


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
    with torch.no_grad():
        model[3].weight.mul_(0.1)
    optimizer = SGD(groups(model), lr=0.5, weight_decay=0.5)
    nc.ExpLR(optimizer, model)
    x = next(batches(1, dtype=dtype))[0]
    if torch.__version__ < (2, 6):  # where it is that of half precision itself
        with pytest.raises(ValueError, match=r"does not follow is '1' \(RMSNorm\)"):
            model(x)
        return
    with torch.no_grad():
        before = model(x).double()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.param_groups[1].update(lr=0.0)
        optimizer.step()
        after = model(x).double()
        assert model[4].eps == torch.finfo(torch.float32).eps / 0.75**2
        model[4].eps = torch.finfo(dtype).eps / 0.75**2
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
        for b in batches(30)
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
    for x, y in batches(20):
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


def test_activation_checkpointing():
    class Saving(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            x = torch.utils.checkpoint.checkpoint(self.inner[:3], x, use_reentrant=False)
            return self.inner[3:](x)

    models, optimizers = pair(MAKE["sgd"], norm="layer", eps=1e-2)
    models = [models[0], Saving(models[1])]
    nc.ExpLR(optimizers[1], models[1])
    assert logit_gap(models, optimizers, 30) < GAP


def test_complex_weights():
    class Turned(nn.Module):
        """A complex layer in front of a norm."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weight = nn.Parameter(torch.randn(WIDTH // 2, DIM, dtype=torch.complex128))
            self.norm, self.head = nn.LayerNorm(WIDTH, eps=1e-2), nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            z = torch.view_as_real(x.to(torch.complex128) @ self.weight.T)
            return self.head(self.norm(z.flatten(1)))

    models, optimizers = [Turned().double(), Turned().double()], []
    for model in models:
        rest = [*model.norm.parameters(), *model.head.parameters()]
        optimizers.append(
            SGD([{"params": [model.weight], "scale_invariant": True}, {"params": rest}], **HARD)
        )
    nc.ExpLR(optimizers[1], models[1])
    assert logit_gap(models, optimizers, 30) < GAP
    assert models[1].norm.eps > 1.01e-2


def test_weights_that_normalize_themselves():
    """No layer shows their scale: that they take part in the pass is seen by drawing them anew."""
    models, optimizers = [], []
    for _ in range(2):
        torch.manual_seed(0)
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(DIM, WIDTH))
        models.append(nn.Sequential(layer, nn.Tanh(), nn.Linear(WIDTH, CLASSES)).double())
        tagged = layer.parametrizations.weight.original1
        rest = [p for p in models[-1].parameters() if p is not tagged]
        optimizers.append(SGD([{"params": [tagged], "scale_invariant": True}, {"params": rest}], **HARD))
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    assert logit_gap(models, optimizers, 40) < GAP and exp_lr.scale() < 1.0


def test_an_embedding_that_clips_its_own_rows_is_refused():
    torch.manual_seed(0)  # with a row shorter than 2, whose half is not clipped
    model = nn.Sequential(
        nn.Embedding(5, WIDTH, max_norm=1.0), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
    )
    nc.ExpLR(SGD([{"params": [model[0].weight], "scale_invariant": True}], **HARD), model)
    before = model[0].weight.detach().clone()
    with pytest.raises(
        ValueError, match="must compute the same when the weights of tagged group 0 are halved"
    ):
        model(torch.arange(5))
    assert torch.equal(model[0].weight, before)


def test_statistics_that_are_computed_anew():
    models, optimizers = pair(MAKE["sgd"], eps=1e-2)
    nc.ExpLR(optimizers[1], models[1])
    logit_gap(models, optimizers, 20)
    for model in models:
        torch.optim.swa_utils.update_bn([x for x, _ in batches(10, seed=6)], model)
    assert eval_gap(models) < GAP
    assert logit_gap(models, optimizers, 20, skip=20) < GAP


# ---------------------------------------------------------------- attached twice: 01, A3


def test_attaching_twice_is_refused():
    models, optimizers = pair(MAKE["sgd"])
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    with pytest.raises(
        ValueError, match="no ExpLR has converted, got those of another in group 0: call detach"
    ):
        nc.ExpLR(optimizers[1], models[1])
    with pytest.raises(ValueError, match="no ExpLR has converted"):
        nc.ExpLR(MAKE["sgd"](groups(models[1])), models[1])  # a cell that makes the optimizer ran twice
    assert logit_gap(models, optimizers, 20) < GAP
    exp_lr.detach()
    nc.ExpLR(optimizers[1], models[1])
    assert logit_gap(models, optimizers, 20, skip=20) < GAP


def test_two_optimizers_on_one_model():
    models = [net(eps=1e-2), net(eps=1e-2)]
    pairs = []
    for model in models:
        first, second = model[0].weight, model[3].weight
        rest = [p for p in model.parameters() if p is not first and p is not second]
        pairs.append(
            (
                SGD([{"params": [first], "scale_invariant": True}, {"params": rest}], momentum=0.9, **HARD),
                AdamW([{"params": [second], "scale_invariant": True}], lr=0.01, weight_decay=0.3),
            )
        )
    for optimizer in pairs[1]:
        nc.ExpLR(optimizer, models[1])
    for x, y in batches(40):
        for model, optimizers in zip(models, pairs, strict=True):
            model.zero_grad()
            cross_entropy(model(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
    assert eval_gap(models) < GAP


def test_two_optimizers_that_feed_one_layer_are_refused():
    model = nn.Sequential(
        nn.Linear(DIM, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False), nn.LayerNorm(WIDTH)
    )
    optimizers = [SGD([{"params": [model[i].weight], "scale_invariant": True}], **HARD) for i in (0, 1)]
    exp_lrs = [nc.ExpLR(optimizer, model) for optimizer in optimizers]
    x = next(batches(1, dtype=torch.float32))[0]
    with pytest.raises(ValueError, match="norm layer '2' must follow the weights of one ExpLR, got two"):
        model(x)
    exp_lrs[0].detach()
    model(x)


# ---------------------------------------------------------------- steps that raise: A1, A2


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("where", ["closure", "update"])
def test_a_step_that_raises_leaves_nothing_changed(name, where):
    models, optimizers = pair(MAKE[name])
    nc.ExpLR(optimizers[1], models[1])
    logit_gap(models, optimizers, 5)
    x, y = next(batches(1, seed=7))
    for model in models:
        cross_entropy(model(x), y).backward()
    optimizer, model = optimizers[1], models[1]
    before = snapshot(model, optimizer)
    if where == "closure":
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step(fail)
    else:
        maximize = optimizer.param_groups[0].pop("maximize")
        with pytest.raises(KeyError):
            optimizer.step()
        optimizer.param_groups[0]["maximize"] = maximize
    assert_same(before, snapshot(model, optimizer))
    for o in optimizers:
        o.param_groups[0]["lr"] *= 0.5  # what a scheduler does in between counts
    assert logit_gap(models, optimizers, 20, skip=5) < GAP


def fail():
    raise RuntimeError("out of memory")


def snapshot(model, optimizer):
    """The tagged group, its weights, gradients and buffers."""
    group = optimizer.param_groups[0]
    tensors = [t.clone() for p in group["params"] for t in (p.detach(), p.grad)]
    tensors += [v.clone() for p in group["params"] for k, v in optimizer.state[p].items() if k != "step"]
    return {k: v for k, v in group.items() if k != "params"}, tensors


def assert_same(one, other):
    assert one[0] == other[0]
    for a, b in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-15, atol=0.0)


def test_a_closure_sees_what_the_user_set():
    """Lightning runs the training step inside `optimizer.step`."""
    models, optimizers = pair(MAKE["sgd"])
    nc.ExpLR(optimizers[1], models[1])
    seen = []
    for x, y in batches(20):
        for model, optimizer in zip(models, optimizers, strict=True):

            def closure(model=model, optimizer=optimizer):
                optimizer.zero_grad()
                loss = cross_entropy(model(x), y)
                loss.backward()
                seen.append(
                    (
                        optimizer.param_groups[0]["lr"],
                        float(nn.utils.clip_grad_norm_(model.parameters(), 0.5)),
                    )
                )
                return loss

            assert optimizer.step(closure=closure) is not None
    assert {lr for lr, _ in seen} == {0.1}
    assert [norm for _, norm in seen[::2]] == pytest.approx([norm for _, norm in seen[1::2]], rel=1e-8)
    assert eval_gap(models) < GAP


# ---------------------------------------------------------------- gradients, for whoever looks: F3, A13


LOOKS = {
    "clip_grad_norm_": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.3),
    "clip_grad_value_": lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.01),
    "noise": lambda model: add_noise(model),
    "adaptive clipping of the head": lambda model: model[6].weight.grad.clamp_(-0.01, 0.01),
}


@torch.no_grad()
def add_noise(model):
    """Gradient noise of a fixed size."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.grad.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=1e-3)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", MAKE)
def test_gradients_are_ordinary_for_whoever_looks(look, name):
    models, optimizers = pair(MAKE[name])
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    for x, y in batches(20):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            for half in (slice(8), slice(8, None)):  # accumulated
                cross_entropy(model(x[half]), y[half]).backward()
            LOOKS[look](model)
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-9)
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-9)  # and after the step
    assert eval_gap(models) < GAP and exp_lr.scale() < 0.95


def test_gradients_of_a_scaler_and_of_autograd():
    models, optimizers = pair(MAKE["sgd"])
    nc.ExpLR(optimizers[1], models[1])
    logit_gap(models, optimizers, 20)
    x, y = next(batches(1, seed=5))
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in models]
    grads, norms = [], []
    for model, optimizer, scaler in zip(models, optimizers, scalers, strict=True):
        grads.append(torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters())))
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model(x), y)).backward()
        scaler.unscale_(optimizer)
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
        scaler.step(optimizer)
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert eval_gap(models) < GAP


def test_weights_that_are_frozen_and_trained_again():
    models, optimizers = pair(MAKE["sgd"])
    for model in models:
        model[3].weight.requires_grad_(False)
    nc.ExpLR(optimizers[1], models[1])
    for t, batch in enumerate(batches(40)):
        for model, optimizer in zip(models, optimizers, strict=True):
            model[3].weight.requires_grad_(t % 10 > 4)
            step(model, optimizer, batch)
    assert eval_gap(models) < GAP


# ---------------------------------------------------------------- weights, for whoever reads or moves them: 05, 26, 27


def ordinary(exp_lr):
    """The context, or none for the plain run."""
    return contextlib.nullcontext() if exp_lr is None else exp_lr.ordinary_weights()


def train_two(each, name="sgd", steps=30, **options):
    """Train a plain and a converted run; `each(model, optimizer, exp_lr, batch)` does a step; returns its last values."""
    models, optimizers = pair(MAKE[name], **options)
    gauges = [None, nc.ExpLR(optimizers[1], models[1])]
    values = [None, None]
    for batch in batches(steps):
        for i in (0, 1):
            values[i] = each(models[i], optimizers[i], gauges[i], batch)
    return models, values, gauges[1]


@pytest.mark.parametrize("name", MAKE)
def test_averages_of_weights_and_the_run_beside_them(name):
    averages = {}

    def each(model, optimizer, exp_lr, batch):
        step(model, optimizer, batch)
        with ordinary(exp_lr):
            if exp_lr not in averages:
                averages[exp_lr] = AveragedModel(
                    model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
                )
            averages[exp_lr].update_parameters(model)

    models, _, _ = train_two(each, name, eps=1e-2)
    assert eval_gap(models) < GAP
    assert eval_gap(list(averages.values())) < GAP
    for p, q in zip(*(a.module.parameters() for a in averages.values()), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)

    alone, optimizers = pair(MAKE[name], eps=1e-2)
    nc.ExpLR(optimizers[1], alone[1])
    logit_gap(alone, optimizers, 30)
    for key, value in alone[1].state_dict().items():  # whoever only reads changes no bit
        assert torch.equal(value, models[1].state_dict()[key]), key


def test_control_averages_outside_the_context_are_others():
    averages = {}

    def each(model, optimizer, exp_lr, batch):
        step(model, optimizer, batch)
        averages.setdefault(exp_lr, AveragedModel(model)).update_parameters(model)

    train_two(each, eps=1e-2)
    assert eval_gap(list(averages.values())) > VISIBLE


def test_the_laboratory_s_average():
    lab = pytest.importorskip("normcore.lab")
    x, y = torch.cat([x for x, _ in batches(20, seed=8)]), torch.cat([y for _, y in batches(20, seed=8)])
    swa = {}

    def each(model, optimizer, exp_lr, batch):
        step(model, optimizer, batch)
        with ordinary(exp_lr):
            return swa.setdefault(exp_lr, lab.SWA(x, y))(model)

    _, values, _ = train_two(each, eps=1e-2)
    assert values[0] == values[1]
    states = [probe.state_dict() for probe in swa.values()]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-8, atol=1e-10)


@torch.no_grad()
def clip_by_the_weights(model, ratio=0.02):
    """Adaptive gradient clipping."""
    for p in model.parameters():
        largest = ratio * p.norm().clamp_min(1e-3)
        p.grad.mul_((largest / p.grad.norm().clamp_min(1e-12)).clamp_max(1.0))


def test_adaptive_gradient_clipping():
    def each(model, optimizer, exp_lr, batch):
        optimizer.zero_grad()
        cross_entropy(model(batch[0]), batch[1]).backward()
        with ordinary(exp_lr):
            clip_by_the_weights(model)
        optimizer.step()

    assert eval_gap(train_two(each)[0]) < GAP


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("whole", [False, True])
def test_sharpness_aware_steps(name, whole):
    """Both halves within the context, the optimizer's step too, or outside of it."""

    def each(model, optimizer, exp_lr, batch):
        optimizer.zero_grad()
        cross_entropy(model(batch[0]), batch[1]).backward()
        with ordinary(exp_lr), torch.no_grad():
            kept = [p.clone() for p in model.parameters()]
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            for p in model.parameters():
                p.add_(p.grad, alpha=float(0.05 / norm))
        optimizer.zero_grad()
        cross_entropy(model(batch[0]), batch[1]).backward()
        with ordinary(exp_lr):
            for p, old in zip(model.parameters(), kept, strict=True):
                p.data = old
            if whole:
                optimizer.step()
        if not whole:
            optimizer.step()

    assert eval_gap(train_two(each, name, eps=1e-2)[0]) < GAP


@pytest.mark.parametrize("name", MAKE)
def test_weights_may_be_moved_within_the_context(name):
    def each(model, optimizer, exp_lr, batch):
        step(model, optimizer, batch)
        with ordinary(exp_lr), torch.no_grad():
            model[0].weight.data.clamp_(-0.3, 0.3)

    models, _, exp_lr = train_two(each, name, eps=1e-2)
    assert eval_gap(models) < GAP and exp_lr.scale() < 0.95


def test_a_checkpoint_within_the_context_is_one_of_the_run_with_weight_decay():
    models, optimizers = pair(MAKE["nesterov"], eps=1e-2)
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    logit_gap(models, optimizers, 20)
    with exp_lr.ordinary_weights():
        states = copy.deepcopy([models[1].state_dict(), optimizers[1].state_dict()])
        for key, value in models[0].state_dict().items():
            torch.testing.assert_close(value, states[0][key], rtol=1e-8, atol=1e-10)
        assert models[1][1].eps == 1e-2 and exp_lr.scale() == 1.0
    assert exp_lr.scale() < 0.9 and models[1][1].eps > 1e-2
    models[1] = net(eps=1e-2, seed=9)
    optimizers[1] = MAKE["nesterov"](groups(models[1]))
    models[1].load_state_dict(states[0]), optimizers[1].load_state_dict(states[1])
    assert logit_gap(models, optimizers, 30, skip=20) < GAP


def test_the_scale_is_that_of_the_weights_now():
    models, optimizers = pair(lambda g: SGD(g, lr=0.1, weight_decay=0.5, momentum=0.5), norm="layer")
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    logit_gap(models, optimizers, 40)
    assert exp_lr.gauges[0].doublings >= 2
    torch.testing.assert_close(
        models[0][0].weight, exp_lr.scale() * models[1][0].weight, rtol=1e-8, atol=1e-10
    )
    with pytest.raises(ValueError, match="group must be the index of a tagged group"):
        exp_lr.scale(1)


# ---------------------------------------------------------------- states: 04, 04b, 28, A12, A17, F12


def tried_and_rolled_back(with_gauge):
    """A rate finder: train at other rates, then give model and optimizer their states back."""
    models, optimizers = pair(MAKE["sgd"], eps=1e-2)
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    runs = list(zip(models, optimizers, strict=True))
    kept = [copy.deepcopy((m.state_dict(), o.state_dict())) for m, o in runs]
    gauge = exp_lr.state_dict()
    for t, batch in enumerate(batches(30, seed=4)):
        for model, optimizer in runs:
            optimizer.param_groups[0]["lr"] = 1e-3 * 1.2**t
            step(model, optimizer, batch)
    assert exp_lr.scale() < 1.0
    for (model, optimizer), (weights, state) in zip(runs, kept, strict=True):
        model.load_state_dict(weights), optimizer.load_state_dict(state)
    if with_gauge:
        exp_lr.load_state_dict(gauge)
    return models, optimizers


@pytest.mark.parametrize("with_gauge", [False, True])
def test_a_rate_finder_that_restores_the_states(with_gauge):
    models, optimizers = tried_and_rolled_back(with_gauge)
    assert models[1][1].eps == 1e-2
    assert eval_gap(models) == 0.0
    assert logit_gap(models, optimizers, 50) < GAP


@pytest.mark.parametrize("name", MAKE)
def test_the_optimizer_s_state_brings_the_gauge(name):
    """Resumed as if there were no ExpLR: its own state is forgotten."""
    models, optimizers = pair(MAKE[name], eps=1e-2)
    nc.ExpLR(optimizers[1], models[1])
    logit_gap(models, optimizers, 20)
    file = io.BytesIO()
    torch.save([models[1].state_dict(), optimizers[1].state_dict()], file)
    file.seek(0)
    models[1] = net(eps=1e-2, seed=9)
    optimizers[1] = MAKE[name](groups(models[1]))
    nc.ExpLR(optimizers[1], models[1])
    for thing, state in zip((models[1], optimizers[1]), torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    assert eval_gap(models) < GAP
    assert logit_gap(models, optimizers, 30, skip=20) < GAP


def test_converted_weights_are_not_trained_without_a_gauge():
    model = net(eps=1e-2)
    optimizer = MAKE["sgd"](groups(model))
    nc.ExpLR(optimizer, model)
    for batch in batches(5):
        step(model, optimizer, batch)
    states = model.state_dict(), optimizer.state_dict()
    model = net(eps=1e-2)
    optimizer = MAKE["sgd"](groups(model))
    model.load_state_dict(states[0]), optimizer.load_state_dict(states[1])
    with pytest.raises(ValueError, match="optimizer must have an ExpLR attached"):
        step(model, optimizer, batch)
    nc.ExpLR(optimizer, model).detach()
    step(model, optimizer, batch)


@pytest.mark.parametrize("what", ["model", "optimizer"])
def test_half_a_state_is_refused(what):
    models, optimizers = pair(MAKE["sgd"], eps=1e-2)
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    logit_gap(models, optimizers, 5)
    things = {"model": models[1], "optimizer": optimizers[1]}
    kept = {name: copy.deepcopy(thing.state_dict()) for name, thing in things.items()}
    logit_gap(models, optimizers, 15, skip=5)
    things[what].load_state_dict(kept[what])
    alone = "model" if what == "model" else "gauge"
    for call in (lambda: models[1](next(batches(1))[0]), optimizers[1].step):
        with pytest.raises(ValueError, match=f"must be loaded together, got the {alone} alone"):
            call()
    for name, thing in things.items():
        thing.load_state_dict(kept[name])
    models[0] = net(eps=1e-2)
    optimizers[0] = MAKE["sgd"](groups(models[0]))
    for batch in batches(5):
        step(models[0], optimizers[0], batch)
    assert logit_gap(models, optimizers, 30, skip=5) < GAP and exp_lr.scale() < 0.9


def test_ordinary_weights_may_be_loaded_within_the_context():
    models, optimizers = pair(MAKE["sgd"], eps=1e-2)
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    logit_gap(models, optimizers, 20)
    for model, exp in zip(models, (None, exp_lr), strict=True):
        with ordinary(exp):
            model.load_state_dict(net(eps=1e-2, seed=5).state_dict())
    assert logit_gap(models, optimizers, 30, skip=20) < GAP


def test_the_training_loop_resumes_though_it_was_not_told_of_exp_lr(tmp_path):
    lab = pytest.importorskip("normcore.lab")
    runs = []
    for exp_lr_given in (True, False):
        folder = tmp_path / str(exp_lr_given)
        for stop in (20, 40):  # the second call goes on from the first's checkpoint
            model = net(eps=1e-2)
            optimizer = MAKE["sgd"](groups(model))
            exp_lr = nc.ExpLR(optimizer, model)
            given = {"exp_lr": exp_lr} if exp_lr_given else {}
            Stop.last = stop
            probes = {"stop": Stop()}
            options = dict(checkpoint=folder, checkpoint_every=10, probes=probes, progress=False, **given)
            with pytest.raises(KeyboardInterrupt) if stop == 20 else contextlib.nullcontext():
                history = lab.train(model, optimizer, list(batches(40)), **options)
        runs.append(history.loss)
    assert np.array_equal(*runs)


class Stop:
    """A probe that ends the run after some readings; how many is no part of the run's signature."""

    last = 0

    def __init__(self):
        self.readings = 0

    def __call__(self, model):
        self.readings += 1
        if self.readings > self.last + 1:
            raise KeyboardInterrupt
        return 0.0


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 4, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [5, 12], 0.3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=15),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 30, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 30),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 6),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 30),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 8), lr_scheduler.ExponentialLR(o, 0.9)], [8]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
}


def scheduled(name, attach=nc.ExpLR, stop=None):
    """The model after 20 scheduled steps; stopped, saved and resumed after some of them."""

    def start():
        model = net(eps=1e-2)
        optimizer = MAKE["sgd"](groups(model))
        attach(optimizer, model)
        return model, optimizer, SCHEDULERS[name](optimizer)

    parts = start()
    for t, (x, y) in enumerate(batches(20)):
        if t == stop:
            file = io.BytesIO()
            torch.save([part.state_dict() for part in parts], file)
            parts = start()
            file.seek(0)
            for part, state in zip(parts, torch.load(file, weights_only=True), strict=True):
                part.load_state_dict(state)
        model, optimizer, scheduler = parts
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        scheduler.step(*([loss.item()] if "Plateau" in name else []))
    return model


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduled_run_resumes_to_the_same_bits(name):
    model = scheduled(name)
    for p, q in zip(model.parameters(), scheduled(name, stop=10).parameters(), strict=True):
        assert torch.equal(p, q)
    assert eval_gap([scheduled(name, attach=lambda *_: None), model]) < GAP


# ---------------------------------------------------------------- copies


COPY = {"deepcopy": copy.deepcopy, "pickle": lambda pair: pickle.loads(pickle.dumps(pair))}


@pytest.mark.parametrize("how", COPY)
@pytest.mark.parametrize("name", MAKE)
def test_a_copied_pair_goes_on_with_an_exp_lr_of_its_own(how, name):
    models, optimizers = pair(MAKE[name], eps=1e-2)
    nc.ExpLR(optimizers[1], models[1])
    logit_gap(models, optimizers, 20)
    models[1], optimizers[1] = COPY[how]((models[1], optimizers[1]))
    with pytest.raises(ValueError, match="optimizer must have an ExpLR attached, got one with weights that"):
        optimizers[1].step()
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    assert exp_lr.scale() < 1.0
    assert logit_gap(models, optimizers, 20, skip=20) < GAP
    exp_lr.detach()
    assert models[1][1].eps == 1e-2
    assert logit_gap(models, optimizers, 20, skip=40) < GAP


@pytest.mark.parametrize("how", COPY)
def test_a_copied_model_is_a_model_and_no_more(how):
    models, optimizers = pair(MAKE["sgd"], eps=1e-2)
    nc.ExpLR(optimizers[1], models[1])
    early = COPY[how](models[1])
    early(next(batches(1))[0])
    assert nc.ExpLR is type(nc.ExpLR(SGD(groups(early), **HARD), early))  # nothing came along
    logit_gap(models, optimizers, 20)
    late = COPY[how](models[1])
    assert eval_gap([models[0], late]) < GAP
    with pytest.raises(TypeError, match="ExpLR cannot be copied: copy model and optimizer together"):
        COPY[how](nc.ExpLR(SGD(groups(late), **HARD)))


# ---------------------------------------------------------------- optimizers: 22, 35, 37, 43, A4, A5, F11


class Logged(SGD):
    """A step of its own around torch's."""

    def step(self, closure=None):
        self.calls = getattr(self, "calls", 0) + 1
        return super().step(closure)


class Outside(SGD):
    """Decay beside the update, in a subclass of SGD."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("velocity", torch.zeros_like(p))
                buffer.mul_(group["momentum"]).add_(p.grad)
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(buffer, alpha=group["lr"])


class Sign(torch.optim.Optimizer):
    """Lion."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                mean = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(torch.sign(first * mean + (1 - first) * p.grad), alpha=group["lr"])
                mean.lerp_(p.grad, 1 - second)


DECLARED = {
    "super().step()": (lambda g: Logged(g, momentum=0.9, **HARD), "sgd"),
    "super().step(), nesterov": (lambda g: Logged(g, momentum=0.9, nesterov=True, **HARD), "nesterov"),
    "decay outside": (lambda g: Outside(g, lr=0.1, momentum=0.9, weight_decay=0.1), "sgdw"),
    "Lion": (lambda g: Sign(g, lr=0.003, weight_decay=1.0), "lion"),
}


@pytest.mark.parametrize("name", DECLARED)
def test_a_step_of_its_own_is_refused_and_exact_when_its_rule_is_declared(name):
    make, rule = DECLARED[name]
    models, optimizers = pair(make, norm="layer", eps=1e-2)
    with pytest.raises(TypeError, match="say so: rule="):
        nc.ExpLR(optimizers[1], models[1])
    exp_lr = nc.ExpLR(optimizers[1], models[1], rule=rule)
    SGD([nn.Parameter(torch.ones(1))], lr=0.1)  # from now on torch fires the hooks of the inner step, too
    assert logit_gap(models, optimizers, 40) < GAP
    assert exp_lr.log_scale() == pytest.approx(
        nc.equivalent_schedule(
            optimizers[1].param_groups[0]["lr"],
            optimizers[1].param_groups[0]["weight_decay"],
            0.9 if rule in ("sgd", "nesterov") else 0.0,
            nesterov=rule == "nesterov",
            decoupled=rule in ("sgdw", "lion"),
            steps=40,
        ).log_scale[-1],
        rel=1e-12,
    )


def test_a_nested_step_that_raises():
    models, optimizers = pair(DECLARED["super().step(), nesterov"][0])
    nc.ExpLR(optimizers[1], models[1], rule="nesterov")
    logit_gap(models, optimizers, 5)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizers[1].step(fail)
    assert logit_gap(models, optimizers, 20, skip=5) < GAP


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule must be one of .*, got 'rmsprop'"):
        nc.ExpLR(Sign(groups(net())), rule="rmsprop")


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon():
    """Its update is computed in bfloat16, which magnifies one rounding to 1e-3: the ruler is a rounding's twin."""

    def make(both):
        return torch.optim.Muon([{**both[0]}], lr=0.02, weight_decay=1.0)

    model = net_with(lambda: nn.LayerNorm(WIDTH, eps=1e-2))
    assert roundings(model, make, 30) < 10


class Accelerated(torch.optim.Optimizer):
    """What a trainer makes of an optimizer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure=None):
        self.optimizer.step(closure)


def test_a_wrapped_optimizer():
    models, optimizers = pair(MAKE["sgd"])
    nc.ExpLR(Accelerated(optimizers[1]), models[1])
    for x, y in batches(30):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
        optimizers[0].step()
        Accelerated(optimizers[1]).step()
    assert eval_gap(models) < GAP


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_as_rate_stays_one_and_a_compiled_step_compiles_once(dtype):
    rates, seen = [torch.tensor(0.1, dtype=dtype) for _ in range(2)], set()
    models = [net(eps=1e-2), net(eps=1e-2)]
    optimizers = [
        SGD(groups(model), lr=rate, momentum=0.9, weight_decay=1e-2, foreach=True)
        for model, rate in zip(models, rates, strict=True)
    ]
    nc.ExpLR(optimizers[1], models[1])
    optimizers[1].register_step_pre_hook(lambda o, *_: seen.add(id(o.param_groups[0]["lr"])))
    schedulers = [lr_scheduler.ExponentialLR(o, 0.99) for o in optimizers]
    torch._dynamo.reset()
    compiled = torch.compile(optimizers[1].step, backend="eager")
    counts = []
    for x, y in batches(16):
        for model, optimizer, take in zip(models, optimizers, (optimizers[0].step, compiled), strict=True):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            take()
        for scheduler in schedulers:
            scheduler.step()
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert eval_gap(models) < GAP
    assert optimizers[1].param_groups[0]["lr"] is rates[1]
    assert len(seen) == 1
    assert counts[-1] == counts[4] or torch.__version__ < (2, 6)  # which compiles again for a new state


# ---------------------------------------------------------------- groups that come later: 20, A16


def test_a_group_that_is_added_in_mid_run_is_converted_and_resumes():
    def parts(model):
        first, second = model[0].weight, model[3].weight
        rest = [p for p in model.parameters() if p is not first and p is not second]
        return (
            {"params": [first], "scale_invariant": True},
            {"params": rest},
            {"params": [second], "scale_invariant": True},
        )

    models = [net(eps=1e-2), net(eps=1e-2)]
    optimizers = [SGD(parts(m)[:2], momentum=0.9, **HARD) for m in models]
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    assert logit_gap(models, optimizers, 10) < GAP
    for model, optimizer in zip(models, optimizers, strict=True):
        optimizer.add_param_group({**parts(model)[2], "lr": 0.05})
    assert logit_gap(models, optimizers, 20, skip=10) < GAP
    assert exp_lr.log_scale(2) < 0 and exp_lr.log_scale(2) > exp_lr.log_scale(0)

    states = [copy.deepcopy(thing.state_dict()) for thing in (models[1], optimizers[1], exp_lr)]
    models[1] = net(eps=1e-2, seed=9)
    optimizers[1] = SGD(parts(models[1])[:2], momentum=0.9, **HARD)
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    with pytest.raises(ValueError, match=r"version, groups must be 2, \[0\], got 2, \[0, 2\]"):
        exp_lr.load_state_dict(states[2])
    optimizers[1].add_param_group(parts(models[1])[2])
    for thing, state in zip((models[1], optimizers[1], exp_lr), states, strict=True):
        thing.load_state_dict(state)
    assert logit_gap(models, optimizers, 30, skip=30) < GAP
