"""A small transformer that reads an image row by row, with or without normalized queries and keys."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from normcore.checks import checked_count, require_flags
from normcore.lab.nets.layers import seeded


class Attention(nn.Module):
    """Self-attention of all tokens with all; queries and keys normalized head by head where asked."""

    def __init__(self, dim: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = (
            nn.RMSNorm(dim // heads, eps=1e-6) if qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The mixed values, (batch, tokens, dim)."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        mixed = scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Norm, attention, norm, two layers with GELU; each half beside the identity."""

    def __init__(self, dim: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads, qk_norm)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream after the block."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """See `transformer`."""

    def __init__(self, dim: int, blocks: int, heads: int, qk_norm: bool, pixels: int, classes: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(pixels, dim), nn.Parameter(0.1 * torch.randn(pixels, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, qk_norm) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (batch, 1, pixels, pixels)."""
        tokens = self.blocks(self.embed(x.squeeze(1)) + self.place)
        return self.head(self.norm(tokens).mean(dim=1))  # type: ignore[no-any-return]


def transformer(
    dim: int = 32,
    *,
    blocks: int = 2,
    heads: int = 2,
    qk_norm: bool = True,
    pixels: int = 8,
    classes: int = 10,
    seed: int = 0,
) -> nn.Module:
    """Build a pre-norm transformer whose tokens are the rows of a square grey image.

    With `qk_norm` each head's queries and keys pass through an RMSNorm of their own, so that the query and key
    weights are scale-invariant, each alone; without it no weight of the attention is.

    Args:
        dim: width of the residual stream, a multiple of heads.
        blocks: pairs of attention and MLP.
        heads: of the attention.
        qk_norm: whether queries and keys are normalized.
        pixels: on a side.
        classes: outputs.
        seed: of the weights; torch's generator is left alone.

    Raises:
        ValueError: dim is not a multiple of heads, or a count is below 1.

    Example:
        >>> transformer(16)(torch.randn(3, 1, 8, 8)).shape
        torch.Size([3, 10])

    Source: Henry et al. (2020), arXiv 2010.04245, for normalized queries and keys.

    """
    counts = {"dim": dim, "blocks": blocks, "heads": heads, "pixels": pixels, "classes": classes}
    for name, count in counts.items():
        checked_count(name, count)
    require_flags(qk_norm=qk_norm)
    if dim % heads:
        raise ValueError(f"dim must be a multiple of heads={heads}, got {dim!r}")
    with seeded(seed):
        return Transformer(dim, blocks, heads, qk_norm, pixels, classes)
