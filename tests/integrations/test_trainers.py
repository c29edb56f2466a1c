"""The recipes of book/trainers.md, line for line: each run equals the one with weight decay up to rounding."""

import contextlib
import functools
import importlib
import re
import shutil
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import normcore as nc

PAGE = Path(__file__).parents[2] / "book" / "trainers.md"
GAP = 1e-9
"""Float64, a dozen steps: rounding of 1e-16, amplified by the training itself."""
VISIBLE = 1e-5

pytestmark = pytest.mark.slow


def library(name):
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[integrations]'")


def recipe(heading):
    """The code below a heading of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def plain(optimizer, model):
    """No ExpLR."""
    return types.SimpleNamespace(ordinary_weights=contextlib.nullcontext, detach=lambda: None)


def without_the_model(optimizer, model):
    """A control: norm layers do not follow."""
    return nc.ExpLR(optimizer)


def of_the_head(model, report, **options):
    """A control: a group that is not scale-invariant, tagged."""
    named = dict(model.named_parameters())
    head = [p for name, p in named.items() if re.search(r"(head|7)\.weight$", name)]
    rest = [p for p in named.values() if p is not head[-1]]
    return [{"params": head[-1:], "scale_invariant": True, **options}, {"params": rest, **options}]


def strong(model, report, **options):
    """The package's groups, at a rate and decay that a dozen steps can feel."""
    return nc.param_groups(model, report, **options | dict(lr=0.02, weight_decay=1.0))


def package(attach, groups=strong):
    """`nc` as a recipe sees it, with another ExpLR."""
    return types.SimpleNamespace(scale_invariance=nc.scale_invariance, param_groups=groups, ExpLR=attach)


def images(count=48, channels=1, size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(3, (count,), generator=generator)


def gap(runs):
    """The largest difference between two runs' lists of tensors."""
    pairs = zip(*runs, strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


# ---------------------------------------------------------------- Hugging Face


def gpt2():
    """In float64, as torch's own norms and the loss given to the Trainer allow; with dropout."""
    transformers = library("transformers")
    sizes = dict(vocab_size=11, n_positions=8, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=False)
    config = transformers.GPT2Config(**sizes, layer_norm_epsilon=1e-2, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config).double()


def qwen():
    """Its norms, those of queries and keys too, are a class of its own and compute in float32."""
    transformers = library("transformers")
    sizes = dict(vocab_size=11, hidden_size=16, intermediate_size=24, num_hidden_layers=2, head_dim=8)
    sizes |= dict(num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False)
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes, rms_norm_eps=1e-2))


def next_token(logits, labels):
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def hugging_face(folder, attach, make=gpt2, groups=strong, resume=False, kick=0.0):
    """Gradient norms along the run and the last outputs; and the names of the recipe."""
    transformers = library("transformers")
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.0 + kick)
    tokens = torch.randint(11, (48, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    args = transformers.TrainingArguments(
        str(folder),
        max_steps=12,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        save_steps=6,
        eval_strategy="steps",
        eval_steps=4,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    assert args.max_grad_norm == 1.0  # its default

    def loss(outputs, labels, num_items_in_batch=None):
        return next_token(outputs.logits, labels)

    space = dict(nc=package(attach, groups), torch=torch, model=model, data=data, args=args)
    space |= dict(batch=transformers.default_data_collator(data[:16]), loss_fn=next_token)
    space["Trainer"] = functools.partial(transformers.Trainer, compute_loss_func=loss, eval_dataset=data[:16])
    code = recipe("Hugging Face Trainer")
    exec(code.replace("train()", "train(resume_from_checkpoint=True)") if resume else code, space)
    history = space["trainer"].state.log_history
    norms = [row for row in history if "grad_norm" in row]
    losses = [row["eval_loss"] for row in history if "eval_loss" in row]
    assert len(losses) == 3 and len(norms) == 12 and len({row["learning_rate"] for row in norms}) > 8
    model.eval()
    with torch.no_grad():
        outputs = model(**space["batch"]).logits
    return [torch.tensor([row["grad_norm"] for row in norms]), torch.tensor(losses), outputs], space


def test_hugging_face(tmp_path):
    attempts = (plain, nc.ExpLR, without_the_model)
    runs = [hugging_face(tmp_path / how.__name__, how) for how in attempts]
    gaps = [gap((runs[0][0], run)) for run, _ in runs[1:]]
    assert gaps[0] < GAP and gaps[1] > VISIBLE, gaps
    assert float(runs[0][0][0].max()) > 1.0  # it clipped
    assert runs[1][1]["exp_lr"].log_scale() < -0.05
    shutil.rmtree(tmp_path / "ExpLR" / "checkpoint-12")
    resumed, space = hugging_face(tmp_path / "ExpLR", nc.ExpLR, resume=True)
    assert gap((runs[1][0], resumed)) < GAP
    assert space["exp_lr"].log_scale() == pytest.approx(runs[1][1]["exp_lr"].log_scale())
    best = library("safetensors.torch").load_file(tmp_path / "ExpLR" / "checkpoint-6" / "model.safetensors")
    space["model"].load_state_dict(best, strict=False)  # what load_best_model_at_end does
    with pytest.raises(ValueError, match="model and optimizer must be loaded together, got the model alone"):
        space["model"](**space["batch"])


def test_hugging_face_norms_in_float32(tmp_path):
    """In units of what a rounding of the start becomes."""
    options = [(plain, 0.0), (plain, 2 * torch.finfo(torch.float32).eps), (nc.ExpLR, 0.0)]
    options.append((without_the_model, 0.0))
    runs = [hugging_face(tmp_path / str(i), how, qwen, kick=kick)[0] for i, (how, kick) in enumerate(options)]
    rounding, ours, control = (gap((runs[0][1:], run[1:])) for run in runs[1:])
    assert ours < 10 * rounding and control > 100 * rounding, (rounding, ours, control)


def test_hugging_face_refuses_a_wrong_group(tmp_path):
    with pytest.raises(ValueError, match="model must compute the same when the weights of tagged group 0"):
        hugging_face(tmp_path, nc.ExpLR, groups=of_the_head)


# ---------------------------------------------------------------- convolutional nets for the others


def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-2), nn.ReLU(), nn.Flatten()]
    layers += [nn.Linear(144, 8, bias=False), nn.LayerNorm(8, eps=1e-2), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def outputs_of(model):
    """In train mode and in eval mode."""
    x, _ = images()
    with torch.no_grad():
        evaluated = model.eval()(x)
        return [model.train()(x), evaluated]


# ---------------------------------------------------------------- Lightning


def lightning(folder, attach, groups=strong, steps=12, checkpoint=None, fits=1, **options):
    """The net after the run, and gradient norms along it."""
    L = library("lightning")

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.norms, self.rates = net(), [], []

        def training_step(self, batch, _):
            self.rates.append(self.optimizers().param_groups[0]["lr"])
            return cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, _):
            return cross_entropy(self.net(batch[0]), batch[1])

        def on_before_optimizer_step(self, optimizer):
            self.norms.append(nn.utils.get_total_norm([p.grad for p in self.net.parameters()]))

        def on_fit_end(self):
            self.exp_lr.detach()

    x, y = images()
    space = dict(nc=package(attach, groups), torch=torch, batch=(x, y), loss_fn=cross_entropy)
    exec(recipe("Lightning"), space)
    Module.configure_optimizers = space["configure_optimizers"]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
    module = Module()
    for _ in range(fits):
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            gradient_clip_val=0.3,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(module, loader, loader, ckpt_path=checkpoint)
    return [*module.norms[-6:], *outputs_of(module.net)], module


def test_lightning(tmp_path):
    attempts = (plain, nc.ExpLR, without_the_model)
    runs = [lightning(tmp_path, how) for how in attempts]
    gaps = [gap((runs[0][0], run)) for run, _ in runs[1:]]
    assert gaps[0] < GAP and gaps[1] > VISIBLE, gaps
    rates, norms = ([m.rates for _, m in runs[:2]], runs[0][1].norms)
    assert rates[0] == rates[1] and len(set(rates[0])) == 2  # read inside the step: as set
    assert float(norms[0]) > 0.3  # it clipped
    _, stopped = lightning(tmp_path, nc.ExpLR, steps=6)
    saved = stopped.trainer.checkpoint_callback.best_model_path
    assert torch.load(saved, weights_only=False)["optimizer_states"][0]["param_groups"][0]["exp_lr"]["x"] < 1
    resumed, _ = lightning(tmp_path, nc.ExpLR, checkpoint=saved)
    assert gap((runs[1][0], resumed)) < GAP
    again = [lightning(tmp_path, how, fits=2)[0] for how in attempts[:2]]
    assert gap(again) < GAP and gap((again[0], runs[0][0])) > VISIBLE
    with pytest.raises(ValueError, match="model must compute the same when the weights of tagged group 0"):
        lightning(tmp_path, nc.ExpLR, groups=of_the_head)


# ---------------------------------------------------------------- accelerate


def accelerated(folder, attach, groups=strong, stop=None, resume=False):
    """Gradient norms as accelerate's clipping gives them, and the outputs after the run."""
    accelerate = library("accelerate")
    accelerate.state.GradientState._reset_state()  # another trainer of this process has left its own
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    x, y = images()
    space = dict(nc=package(attach, groups), torch=torch, accelerator=accelerator)
    space |= dict(model=net(), batch=(x, y), loss_fn=cross_entropy)
    exec(recipe("accelerate"), space)
    model, optimizer, scheduler = (space[name] for name in ("model", "optimizer", "scheduler"))
    norms = []
    if resume:
        accelerator.load_state(str(folder))
    for t in range(12 if resume else 0, 24):
        third = (t + accelerator.process_index) % 3
        rows = slice(16 * third, 16 * third + 16)
        with accelerator.accumulate(model):
            accelerator.backward(cross_entropy(model(x[rows]), y[rows]))
            if accelerator.sync_gradients:
                norms.append(accelerator.clip_grad_norm_(model.parameters(), 0.3))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if t + 1 == stop:
            accelerator.save_state(str(folder))
    assert optimizer.param_groups[0]["lr"] < 0.02 and len(norms) == (6 if resume else 12)
    return [*norms[-6:], *outputs_of(model)], space


def test_accelerate(tmp_path):
    runs = [accelerated(tmp_path, how)[0] for how in (plain, nc.ExpLR, without_the_model)]
    gaps = [gap((runs[0], run)) for run in runs[1:]]
    assert gaps[0] < GAP and gaps[1] > VISIBLE, gaps
    assert float(runs[0][0]) > 0.3  # it clipped
    stopped, _ = accelerated(tmp_path, nc.ExpLR, stop=12)
    resumed, space = accelerated(tmp_path, nc.ExpLR, resume=True)
    assert gap((runs[1], stopped)) == 0.0 and gap((runs[1], resumed)) < GAP
    assert space["exp_lr"].log_scale() < -0.05
    with pytest.raises(ValueError, match="model must compute the same when the weights of tagged group 0"):
        accelerated(tmp_path, nc.ExpLR, groups=of_the_head)


# ---------------------------------------------------------------- timm


def timm_run(name, attach, groups=strong, mode="norm", inside=True, **options):
    """Outputs of the net and of its average after the run."""
    timm = library("timm")
    importlib.import_module("timm.optim"), importlib.import_module("timm.scheduler")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=3, in_chans=1, **options).double()
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-2
    x, y = images(12, size=32)
    space = dict(nc=package(attach, groups), timm=timm, model=model, batch=(x, y), loss_fn=cross_entropy)
    exec(recipe("timm"), space)
    optimizer, exp_lr, ema = (space[name] for name in ("optimizer", "exp_lr", "ema"))
    schedule = timm.scheduler.CosineLRScheduler(
        optimizer, t_initial=20, warmup_t=2, warmup_lr_init=1e-2, t_in_epochs=False
    )
    norms = []
    for t in range(10):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
        with exp_lr.ordinary_weights() if mode == "agc" and inside else contextlib.nullcontext():
            timm.utils.dispatch_clip_grad(model.parameters(), 0.1, mode=mode)
        optimizer.step()
        schedule.step_update(t + 1)
        with exp_lr.ordinary_weights() if inside else contextlib.nullcontext():
            ema.update(model)
    ema.module.eval(), model.eval()
    with torch.no_grad():
        return [torch.stack(norms), model(x), ema.module(x)], space


VIT = dict(img_size=32, depth=2, embed_dim=24, num_heads=2)


@pytest.mark.parametrize(
    ("name", "mode", "options"), [("test_resnet", "agc", {}), ("vit_tiny_patch16_224", "norm", VIT)]
)
def test_timm(name, mode, options):
    attempts = (plain, nc.ExpLR, without_the_model)
    runs = [timm_run(name, how, mode=mode, **options) for how in attempts]
    gaps = [gap((runs[0][0], run)) for run, _ in runs[1:]]
    assert gaps[0] < GAP and gaps[1] > VISIBLE, gaps
    assert float(runs[0][0][0].min()) > 0.1  # it clipped
    assert runs[1][1]["exp_lr"].log_scale() < -0.01
    outside, _ = timm_run(name, nc.ExpLR, mode=mode, inside=False, **options)
    assert gap((runs[0][0], outside)) > VISIBLE  # weights read in other units


OWN = {"lion": "lion", "muon": "muon", "sgdw": "sgdw", "nadamw": "degree0"}
"""timm's own optimizers, and the rule that each follows."""


@pytest.mark.parametrize("name", OWN)
def test_optimizers_of_timm_by_their_rule(name):
    timm = library("timm")
    x, y = images()
    runs = []
    for how in (plain, functools.partial(nc.ExpLR, rule=OWN[name])):
        model = net()
        groups = nc.param_groups(model, nc.scale_invariance(model, cross_entropy, (x, y)))
        optimizer = timm.optim.create_optimizer_v2(groups, name, lr=1e-2, weight_decay=1.0)
        how(optimizer, model)
        for _ in range(10):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        runs.append(outputs_of(model))
    assert gap(runs) < GAP and optimizer.param_groups[0]["exp_lr"]["x"] < 0.95
    with pytest.raises(TypeError, match="if its step follows a rule that you know, say so"):
        nc.ExpLR(timm.optim.create_optimizer_v2(groups, name, lr=1e-2))
