"""Models of other libraries, small and with random weights; skipped where the library is absent."""

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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_timm(name):
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[integrations]'")
    torch.manual_seed(0)
    options = dict(img_size=32, depth=2, embed_dim=24, num_heads=2) if "vit" in name else {}
    model = timm.create_model(name, num_classes=4, **options)
    report = nc.scale_invariance(model, cross_entropy, (X, LABELS))
    holds(model, X.double(), report)
    if "resnet" in name:  # zero-initialised residuals and all
        convolutions = [n for n, p in model.named_parameters() if p.dim() == 4]
        assert report.invariant == convolutions
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
