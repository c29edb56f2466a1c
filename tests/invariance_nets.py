"""Nets whose invariances are known."""

import torch
from torch import nn


def classifier_batch(*shape, classes=4, dtype=torch.float64):
    """Random inputs and labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype), torch.randint(
        classes, shape[:1], generator=generator
    )


def conv_net(norm, *, bias=False):
    """conv-norm-ReLU twice, mean, head."""
    torch.manual_seed(0)
    body = [
        nn.Conv2d(1, 8, 3, bias=bias),
        norm(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=bias),
        norm(8),
        nn.ReLU(),
    ]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).double()


class Block(nn.Module):
    """A pre-LN transformer block with its embedding, final norm and head."""

    def __init__(self, dim=8, *, final_norm=True):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(5, dim)
        self.ln1, self.ln2, self.ln3 = (
            nn.LayerNorm(dim),
            nn.LayerNorm(dim),
            nn.LayerNorm(dim) if final_norm else nn.Identity(),
        )
        self.attention = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.head = nn.Linear(dim, 4)
        nn.init.normal_(self.attention.out_proj.bias)
        self.double()

    def forward(self, x):
        x = self.embed(x)
        h = self.ln1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        x = x + self.down(nn.functional.gelu(self.up(self.ln2(x))))
        return self.head(self.ln3(x).mean(1))
