"""The small transformer against attention written out, and what normalized queries and keys make scale-free."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import normcore as nc
from normcore import lab


def rms(x):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("qk_norm", [True, False])
def test_attention_written_out(qk_norm):
    attention = lab.transformer(12, heads=3, qk_norm=qk_norm).double().blocks[0].attention
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = (x @ part.weight.T for part in (attention.q, attention.k, attention.v))
    heads = []
    for i in range(3):
        cut = slice(4 * i, 4 * i + 4)
        a, b = (rms(t[..., cut]) if qk_norm else t[..., cut] for t in (q, k))
        heads.append((a @ b.transpose(-1, -2) / 2.0).softmax(-1) @ v[..., cut])
    expected = torch.cat(heads, dim=-1) @ attention.out.weight.T
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_only_the_norm_makes_queries_and_keys_scale_free(qk_norm):
    net = lab.transformer(16, blocks=1, qk_norm=qk_norm).double()
    batch = torch.randn(12, 1, 8, 8, dtype=torch.float64), torch.randint(10, (12,))
    report = nc.scale_invariance(net, cross_entropy, batch)
    alone = [f"blocks.0.attention.{part}.weight" for part in "qk"]
    assert report.invariant == (alone if qk_norm else [])


def test_seed_and_random_state():
    state = torch.get_rng_state()
    one, two, other = (nn.utils.parameters_to_vector(lab.transformer(seed=s).parameters()) for s in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "heads": 4}, "dim must be a multiple of heads=4, got 10"),
        ({"blocks": 0}, "blocks must be >= 1, got 0"),
    ],
)
def test_wrong_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        lab.transformer(**options)
