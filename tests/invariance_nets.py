"""Nets whose invariances are known."""

import copy

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


class OwnRMSNorm(nn.Module):
    """As in Hugging Face's models: computes in float32, and calls its eps something else."""

    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(dim)), eps
        self.inside = torch.float32

    def forward(self, x):
        z = x.to(self.inside)
        z = z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * z.to(x.dtype)


class OwnBatchNorm(nn.Module):
    """BatchNorm by hand, with running statistics."""

    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.gain, self.shift, self.eps = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim)), eps
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x):
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = x.mean(0), x.var(0, unbiased=False)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(variance, 0.1)
        return (x - mean) / torch.sqrt(variance + self.eps) * self.gain + self.shift


class LiteralLayerNorm(nn.Module):
    """As in small GPTs: calls the function, with a number for eps."""

    def __init__(self, dim):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Transformer(nn.Module):
    """Pre-norm blocks over what `embed` makes of the input; every size and option small."""

    def __init__(self, embed, norm, *, dim=8, outputs=5, blocks=2, bias=True, gated=False, qk_norm=False):
        super().__init__()

        def linear(a, b):
            return nn.Linear(a, b, bias=bias)

        self.embed, self.blocks, self.gated = embed, nn.ModuleList(), gated
        for _ in range(blocks):
            parts = dict(norm1=norm(dim), norm2=norm(dim), up=linear(dim, 2 * dim), down=linear(2 * dim, dim))
            parts |= {key: linear(dim, dim) for key in "qkvo"}
            parts |= dict(norm_q=norm(dim), norm_k=norm(dim)) if qk_norm else {}
            parts |= dict(gate=linear(dim, 2 * dim)) if gated else {}
            self.blocks.append(nn.ModuleDict(parts))
        self.norm, self.head = norm(dim), nn.Linear(dim, outputs, bias=bias)

    def forward(self, x):
        x = self.embed(x)
        for b in self.blocks:
            h = b["norm1"](x)
            q, k = b["q"](h), b["k"](h)
            if "norm_q" in b:
                q, k = b["norm_q"](q), b["norm_k"](k)
            x = x + b["o"](nn.functional.scaled_dot_product_attention(q, k, b["v"](h)))
            h = b["norm2"](x)
            hidden = nn.functional.silu(b["gate"](h)) * b["up"](h) if self.gated else b["up"](h).relu()
            x = x + b["down"](hidden)
        return self.head(self.norm(x))[:, 0]


class Tokens(nn.Module):
    """A table of tokens and one of positions."""

    def __init__(self, dim=8):
        super().__init__()
        self.token, self.position = nn.Embedding(11, dim), nn.Embedding(8, dim)

    def forward(self, ids):
        return self.token(ids) + self.position(torch.arange(ids.shape[1]))


class Patches(nn.Module):
    """As in vision transformers: patches, a class token that starts at next to nothing, positions."""

    def __init__(self, dim=8):
        super().__init__()
        self.patch = nn.Conv2d(1, dim, 4, 4)
        self.token = nn.Parameter(1e-6 * torch.randn(1, 1, dim))
        self.position = nn.Parameter(0.02 * torch.randn(1, 5, dim))

    def forward(self, x):
        x = self.patch(x).flatten(2).mT
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position


def llama(*, std=0.02, **options):
    """Bias-free blocks with RMSNorm and gates, at the small values Hugging Face starts from."""
    torch.manual_seed(0)
    model = Transformer(nn.Embedding(11, 8), OwnRMSNorm, bias=False, gated=True, outputs=11, **options)
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=std)
    return model


def gpt():
    """Blocks with literal eps, biases and small values."""
    torch.manual_seed(0)
    model = Transformer(Tokens(), LiteralLayerNorm, outputs=11)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.02)
        elif "norm" not in name:
            nn.init.zeros_(p)
    return model


def vit(outputs=4):
    torch.manual_seed(0)
    return Transformer(Patches(), nn.LayerNorm, outputs=outputs)


class ZeroInit(nn.Module):
    """Residual branches whose last gain starts at zero, as in stock ResNets of timm."""

    def __init__(self, dim=6):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(1, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.branches = nn.ModuleList()
        for _ in range(2):
            convs = [nn.Conv2d(dim, dim, 3, padding=1, bias=False) for _ in range(2)]
            norms = [nn.BatchNorm2d(dim) for _ in range(2)]
            nn.init.zeros_(norms[1].weight)
            self.branches.append(nn.Sequential(convs[0], norms[0], nn.ReLU(), convs[1], norms[1]))
        self.head = nn.Linear(dim, 4)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        for branch in self.branches:
            x = (x + branch(x)).relu()
        return self.head(x.mean((2, 3)))


class LayerScale(nn.Module):
    """As in ConvNeXt: depthwise, norm, two layers, and a gain of 1e-6 on what they add."""

    def __init__(self, dim=6):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm0 = nn.Conv2d(1, dim, 2, 2), nn.LayerNorm(dim)
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 4)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x):
        x = self.norm0(self.stem(x).permute(0, 2, 3, 1))
        h = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.gamma * self.down(nn.functional.gelu(self.up(self.norm1(h))))
        return self.head(self.norm(x.mean((1, 2))))


def plain_copy(model, seed=42):
    """For oracles: a copy in float64 at ordinary random values of everything, all through, with every eps it names next to 0."""
    model = copy.deepcopy(model).double().train()
    for module in model.modules():
        for name in ("eps", "variance_epsilon"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 1e-30)
        if isinstance(module, OwnRMSNorm):
            module.inside = torch.float64
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            draw = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.add_(draw * (0.5 if p.dim() <= 1 else (p.shape[0] / p.numel()) ** 0.5))
    return model


def times_ten(model, x, exponents, factor=10.0):
    """The naive test: relative change of the outputs when each tensor named is multiplied by factor**exponent."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        before = model(x)
        for name, a in exponents.items():
            parameters[name].mul_(factor**a)
        after = model(x)
        for name, a in exponents.items():
            parameters[name].div_(factor**a)
    return float((after - before).norm() / before.norm())
