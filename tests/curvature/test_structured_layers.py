"""One layer's part of the kernel, by factors, rows and tokens, against gradients written out."""

from inspect import getclosurevars

import pytest
import torch
from torch import nn

from normcore.curvature.layerwise import (
    Unstructured,
    by_factors,
    by_rows,
    by_tokens,
    inputs_of,
    normalized,
    prefers_rows,
)


@pytest.mark.parametrize("inputs", [3, 50])  # through the weight, and through the Gram matrix
def test_factors_are_rows(inputs):
    torch.manual_seed(0)
    m, k, g, s, out = 4, 3, 2, 5, 2
    x = torch.randn(m, g, s, inputs, dtype=torch.float64)
    deltas = torch.randn(k, m, g, s, out, dtype=torch.float64)
    factors = by_factors(x, deltas.transpose(0, 1))
    rows = by_rows(torch.stack([(delta.transpose(2, 3) @ x).flatten(1) for delta in deltas], dim=1))
    assert (getclosurevars(factors).nonlocals["gram"] is not None) == (inputs == 50)
    jacobian = torch.einsum("kmgso,mgsi->mkgoi", deltas, x).flatten(0, 1).flatten(1)
    u = torch.randn(m, k, dtype=torch.float64)
    expected = (jacobian @ (jacobian.T @ u.flatten())).view(m, k)
    assert torch.allclose(factors(u), expected) and torch.allclose(rows(u), expected)


def test_tokens_share_rows():
    tokens = torch.tensor([[0, 1], [1, 1]])
    delta = torch.randn(2, 2, 3, dtype=torch.float64)
    part = by_tokens(tokens, 2, delta[:, None])
    table = torch.zeros(2, 2, 3, dtype=torch.float64)  # sample, row, coordinate
    for i in range(2):
        for s in range(2):
            table[i, tokens[i, s]] += delta[i, s]
    jacobian = table.flatten(1)
    u = torch.tensor([[0.3], [-1.1]], dtype=torch.float64)
    assert torch.allclose(part(u), jacobian @ (jacobian.T @ u))


def test_patches_make_the_convolution():
    torch.manual_seed(0)
    for conv, shape in (
        (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2), (3, 4, 6, 5)),
        (nn.Conv1d(2, 3, 3, padding="same"), (3, 2, 7)),
    ):
        x = torch.randn(shape)
        patches = inputs_of(conv, x, 3)
        weight = conv.weight.reshape(conv.groups, -1, patches.shape[-1])
        made = torch.einsum("mgsi,goi->mgos", patches, weight)
        assert torch.allclose(
            made.reshape(3, conv.out_channels, -1),
            (conv(x) - conv.bias.view(-1, *[1] * (x.dim() - 2))).flatten(2),
            atol=1e-5,
        )


def test_normalized_is_the_layer_without_gain_and_shift():
    torch.manual_seed(0)
    x = torch.randn(5, 4, 3, 3)
    for layer in (
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4).eval(),
        nn.LayerNorm((4, 3, 3)),
        nn.RMSNorm((4, 3, 3), eps=1e-6),
    ):
        assert torch.allclose(normalized(layer, x), layer(x), atol=1e-6)
    with pytest.raises(Unstructured, match="a BatchNorm2d with batch statistics"):
        normalized(nn.BatchNorm2d(4), x)


def test_the_choice_follows_the_sizes():
    assert prefers_rows(10, 1024, 144) and not prefers_rows(10, 64, 576) and not prefers_rows(10, 1, 784)
