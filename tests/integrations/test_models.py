"""Models of other libraries, small and with random weights; skipped where the library is absent."""

import copy
import re

import pytest
import torch
from invariance_nets import plain_copy, times_ten
from torch.nn.functional import cross_entropy

import normcore as nc

X = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 4
IDS = torch.randint(50, (4, 8), generator=torch.Generator().manual_seed(0))


def next_token(logits, labels):
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def logits(model, x):
    return model(input_ids=x).logits


def holds(model, x, report, forward=None, bound=1e-6):
    """The verdicts and groups against multiplying by ten, on a copy with eps next to 0."""
    oracle = plain_copy(model)
    run = oracle if forward is None else Called(oracle, forward)
    prefix = "" if forward is None else "model."
    for name, v in report.tensors.items():
        change = times_ten(run, x, {prefix + name: 1})
        yes = v.verdict.startswith("yes") or v.inert
        assert v.verdict != "undetermined" or v.inert, name
        assert change < bound if yes else change > bound, (name, v.verdict, change)
    for group in report.groups.values():
        assert times_ten(run, x, {prefix + name: 1 for name in group.names}) < bound


class Called(torch.nn.Module):
    def __init__(self, model, forward):
        super().__init__()
        self.model, self.call = model, forward

    def forward(self, x):
        return self.call(self.model, x)


def without_the_model(optimizer, model):
    """A control: norm layers do not follow."""
    nc.ExpLR(optimizer)


def short_run(model, report, x, loss, attach=lambda *_: None, kick=0.0):
    """Outputs along six steps with an eps, a rate and a decay that they can feel."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        for name in ("eps", "variance_epsilon"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 1e-2)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.0 + kick)
    optimizer = torch.optim.AdamW(nc.param_groups(model, report, lr=0.01, weight_decay=5.0))
    attach(optimizer, model)
    outputs = []
    for _ in range(6):
        optimizer.zero_grad()
        result = model(**x) if isinstance(x, dict) else model(x)
        outputs.append(getattr(result, "logits", result))
        loss(outputs[-1]).backward()
        optimizer.step()
    return torch.stack(outputs).detach()


def trains(model, report, x, loss, precision=torch.float64):
    """ExpLR gives the run with weight decay, in units of what one rounding of the start becomes."""
    plain = short_run(model, report, x, loss)
    kicked = short_run(model, report, x, loss, kick=2 * torch.finfo(precision).eps)
    rounding, ours, control = (
        float((run - plain).abs().max())
        for run in (
            kicked,
            short_run(model, report, x, loss, nc.ExpLR),
            short_run(model, report, x, loss, without_the_model),
        )
    )
    bound = min(30 * rounding, 1e-3)
    assert ours < bound
    assert control > 100 * max(rounding, ours)


VIT = dict(img_size=32, depth=2, embed_dim=24, num_heads=2)
SWIN = dict(img_size=32, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4, drop_path_rate=0.0)
TIMM = {
    "resnet18": {},
    "convnext_atto": dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
    "vit_tiny_patch16_224": VIT,
    "vit_tiny_r_s16_p8_224": VIT,
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "regnety_002": dict(depth=7),
    "nf_resnet26": dict(depths=(1, 1, 1, 1), channels=(16, 16, 32, 32)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[integrations]'")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, **TIMM[name])
    report = nc.scale_invariance(model, cross_entropy, (X, LABELS))
    holds(model, X.double(), report)
    if name == "resnet18":  # too large to train here
        model = timm.create_model("test_resnet", num_classes=4)
        report = nc.scale_invariance(model, cross_entropy, (X, LABELS))
    trains(model, report, X.double(), lambda output: cross_entropy(output, LABELS))
    if "resnet" in name:  # zero-initialised residuals and all
        convolutions = [n for n, p in model.named_parameters() if p.dim() == 4]
        assert report.invariant == convolutions or name == "nf_resnet26"
    if "vit" in name:
        assert any("cls_token" in g.names and "pos_embed" in g.names for g in report.groups.values())


SYMMETRIES = {"Llama": 2 * 5 + 2, "GPT2": 2 * 2 + 2, "Qwen3": 2 * 7 + 2}
"""Of two layers each, and the last norm against the head, and the stream. GPT-2 has its two norms against what lies
behind; Llama both, query against key, value against output, up against down; with normed queries and keys these are
free alone, and their gains are against each other."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SYMMETRIES)
def test_transformers(name):
    """A batch as it comes from the tokenizer needs no wrapper."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install -e '.[integrations]'"
    )
    torch.manual_seed(0)
    small = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    small |= dict(tie_word_embeddings=False)
    quiet = dict(embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)  # ten times must mean the same draws
    small |= quiet if name == "GPT2" else dict(intermediate_size=32, num_key_value_heads=2)
    config = getattr(transformers, f"{name}Config")(**small)
    model = getattr(transformers, f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(config)
    batch = {"input_ids": IDS, "labels": IDS}
    report = nc.scale_invariance(model, next_token, batch)
    assert sum("embed" in n or "wte" in n for g in report.groups.values() for n in g.names) == 1
    if name != "Qwen3":  # its norms of queries and keys round in float32, tenfold or not
        holds(model, IDS, report, logits, bound=1e-5)
    found = nc.scaling_symmetries(model, {"input_ids": IDS})
    assert found.dimension == len(found.exponents) == SYMMETRIES[name]

    groups = {g["name"]: g for g in nc.param_groups(model, report, no_decay=True, weight_decay=0.1)}
    weights = {p: n for n, p in model.named_parameters()}
    bare = {weights[p] for p in groups["no_decay"]["params"]}
    assert bare == {n for n, p in model.named_parameters() if p.dim() == 1 or re.search("embed|wte|wpe", n)}


LM = "ForCausalLM"
MORE = {
    "Bert": ("ForMaskedLM", {}),
    "Gemma2": (LM, dict(head_dim=8)),
    "Gemma3Text": (LM, dict(head_dim=8)),
    "Olmo2": (LM, dict(head_dim=8, eos_token_id=0)),
    "ViT": ("ForImageClassification", dict(image_size=32, patch_size=8, num_labels=4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Llama", "Qwen3", *MORE])
def test_more_of_transformers(name):
    """Their verdicts, and a run under ExpLR; most have norms of their own, which compute in float32."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install -e '.[integrations]'"
    )
    torch.manual_seed(0)
    kind, own = MORE.get(name, (LM, {}))
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    sizes |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0) if kind != LM else {}
    sizes |= dict(num_key_value_heads=2) if kind == LM else {}
    sizes |= dict(vocab_size=50, tie_word_embeddings=False) if name != "ViT" else {}
    config = getattr(transformers, f"{name}Config")(**sizes | own)
    model = getattr(transformers, f"{name.removesuffix('Text')}{kind}")(config)
    x, y = ({"pixel_values": X}, LABELS) if name == "ViT" else ({"input_ids": IDS}, IDS)
    loss_fn = cross_entropy if name == "ViT" else next_token
    report = nc.scale_invariance(model, loss_fn, (x, y))
    wide = {key: t.double() if t.is_floating_point() else t for key, t in x.items()}
    if name != "Qwen3":  # its norms of queries and keys round in float32, tenfold or not
        holds(model, wide, report, lambda model, x: model(**x).logits)
    trains(model, report, wide, lambda output: loss_fn(output, y), torch.float32)


@pytest.mark.slow
def test_torchvision():
    """Channel shuffles, and halves of channels that pass by."""
    from torchvision.models import ShuffleNetV2

    torch.manual_seed(0)
    model = ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], num_classes=4)
    x = torch.randn(6, 3, 64, 64)
    report = nc.scale_invariance(model, cross_entropy, (x, LABELS))
    holds(model, x.double(), report)
    assert {n for n, p in model.named_parameters() if p.dim() == 4} <= set(report.invariant)
    trains(model, report, x.double(), lambda output: cross_entropy(output, LABELS))


@pytest.mark.slow
def test_the_doctor_on_a_model_of_transformers():
    """Queries and keys are scale-free alone, the stream jointly, all else but the embedding against a neighbour."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install -e '.[integrations]'"
    )
    torch.manual_seed(0)
    small = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8)
    small |= dict(intermediate_size=32, num_key_value_heads=2, tie_word_embeddings=False)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**small))
    sizes = {n: p.numel() for n, p in model.named_parameters()}

    def share(pattern):
        return sum(size for n, size in sizes.items() if re.search(pattern, n)) / sum(sizes.values())

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    page = nc.diagnose(model, optimizer, {"input_ids": IDS, "labels": IDS}, loss_fn=next_token, steps=100)
    told = page["scale-free"].value
    assert told["shares"]["alone"] == pytest.approx(share("[qk]_proj"))
    stream = page["weight decay/group 0"].value["names"]["jointly"]
    scaled = {f"model.{name}": 1 for name in stream}
    run = Called(plain_copy(model), logits)
    assert times_ten(run, IDS, scaled) < 1e-4  # its norms round in float32
    assert times_ten(run, IDS, scaled | {"model.lm_head.weight": 1}) > 1.0
    assert "model.embed_tokens.weight" in stream and len(stream) == 5
    assert told["reciprocal"]["share"] == pytest.approx(1 - share("[qk]_proj|embed"))
    assert page["curvature"].value["curvature"] > 0


@pytest.mark.slow
def test_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )

    def forward(model, x):
        return model(x, torch.arange(len(x))).sample

    x = X[:, :, :16, :16]
    report = nc.scale_invariance(model, torch.nn.functional.mse_loss, (x, x), forward=forward)
    holds(model, x.double(), report, forward, bound=1e-4)


MEMORY = """
import resource, torch
import normcore as nc
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
layers = [m for _ in range(20) for m in (nn.Linear(16, 16), nn.LayerNorm(16))]
model, x = nn.Sequential(*layers, nn.Linear(16, 250)), torch.randn(2000, 16)
loss_fn = lambda out, y: (out - y).square().mean()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = nc.scale_invariance(model, loss_fn, (x, torch.zeros(2000, 250)))
print(len(report.tensors), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_is_not_outputs_times_tensors():
    """Half a million outputs and 82 tensors: their product in float64, once, would be 330 MB."""
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    tensors, kilobytes = map(int, done.stdout.split())
    assert tensors == 82 and kilobytes < 200_000
