"""Small nets with every affine norm, convolutions and attention, in float64, gains and shifts away from 1 and 0."""

import torch
from torch import nn

CLASSES = 3


class Attention(nn.Module):
    """Tokens, a pre-norm attention block with a residual, mean, head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4, padding_idx=0)
        self.norm = nn.LayerNorm(4)
        self.qkv = nn.Linear(4, 12)
        self.out = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, tokens):
        h = self.embed(tokens)
        q, k, v = self.qkv(self.norm(h)).chunk(3, dim=-1)
        h = h + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return self.head(torch.tanh(h).mean(1))


class Conv(nn.Module):
    """Two convolutions, grouped, strided, dilated; the second called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding="same", groups=2, dilation=2)
        self.last = nn.Conv2d(4, 2, (2, 3), stride=2)
        self.head = nn.Linear(2, CLASSES)

    def forward(self, x):
        h = torch.tanh(self.norm(self.first(x)))
        h = torch.tanh(self.second(torch.tanh(self.second(h))))
        return self.head(self.last(h).mean((2, 3)))


def stack(norm, activation=nn.Tanh):
    return nn.Sequential(nn.Linear(4, 6), norm, activation(), nn.Linear(6, CLASSES))


MAKE = {
    "layer": lambda: stack(nn.LayerNorm(6)),
    "batch": lambda: stack(nn.BatchNorm1d(6)),
    "group": lambda: stack(nn.GroupNorm(2, 6)),
    "rms": lambda: stack(nn.RMSNorm(6, eps=1e-6)),
    "relu": lambda: stack(nn.LayerNorm(6), lambda: nn.ReLU(inplace=True)),
    "conv": Conv,
    "attention": Attention,
}


def make(kind, seed=0):
    """(model, x) in train mode."""
    torch.manual_seed(seed)
    model = MAKE[kind]().double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
        if kind == "attention":
            model.embed.weight[0] = 0
    x = torch.randn(10, 4, dtype=torch.float64)
    if kind == "conv":
        x = torch.randn(6, 1, 5, 5, dtype=torch.float64)
    if kind == "attention":
        x = torch.randint(5, (8, 3))
    return model, x


def labels(x, seed=5):
    """Class numbers and real targets."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (len(x),), generator=generator)
    return classes, torch.randn(len(x), CLASSES, generator=generator, dtype=torch.float64)


def state_of(model):
    """Everything that must not change: weights, buffers, gradients, modes, random state, hooks."""
    tensors = {n: t.clone() for n, t in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return tensors, grads, modes, torch.get_rng_state(), hooks


def same_state(a, b):
    """Whether two states are equal, bit for bit."""
    tensors = all(torch.equal(v, b[0][n]) for n, v in a[0].items())
    grads = all(x is y is None or torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    return tensors and grads and a[2] == b[2] and torch.equal(a[3], b[3]) and a[4] == b[4]
