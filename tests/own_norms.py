"""Normalization as people write it themselves: other classes, other names, other places of eps."""

import torch
from torch import nn


class RootMeanSquare(nn.Module):
    """As in Llama and Qwen: `variance_epsilon`, computed in float32."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = eps

    def forward(self, hidden):
        kept = hidden.dtype
        hidden = hidden.to(torch.float32)
        mean_square = hidden.square().mean(dim=-1, keepdim=True)
        return self.weight * (hidden / torch.sqrt(mean_square + self.variance_epsilon)).to(kept)


class OneMore(nn.Module):
    """As in Gemma: `eps`, a gain of 1 + weight, computed in float32."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * (1.0 + self.weight.float())).type_as(x)


class BesideTheRoot(nn.Module):
    """(z - mean) / (std + eps): an eps of degree 1."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.epsilon = eps

    def forward(self, x):
        return self.a * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.epsilon) + self.b


class Batch(nn.Module):
    """A BatchNorm written by hand, whose statistics may have other names than torch's."""

    def __init__(self, width, eps=1e-5, mean="running_mean", variance="running_var"):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps, self.names = eps, (mean, variance)
        self.register_buffer(mean, torch.zeros(width))
        self.register_buffer(variance, torch.ones(width))

    def forward(self, x):
        kept = [getattr(self, name) for name in self.names]
        used = kept
        if self.training:
            used = x.mean(0), x.var(0, unbiased=False)
            with torch.no_grad():
                for old, new in zip(kept, used, strict=True):
                    old.lerp_(new, 0.1)
        return self.gain * (x - used[0]) / torch.sqrt(used[1] + self.eps) + self.shift


class Frozen(Batch):
    """With statistics that stay, as detectors use it."""

    def forward(self, x):
        return self.gain * (x - self.running_mean) / torch.sqrt(self.running_var + self.eps) + self.shift


class Hidden(nn.Module):
    """An eps that nobody can reach."""

    def __init__(self, width, eps):
        super().__init__()
        self.forward = lambda x: nn.functional.layer_norm(x, (width,), eps=eps)


class Block(nn.Module):
    """A residual block with an eps of its own, for the norm it calls as a function."""

    def __init__(self, width, eps):
        super().__init__()
        self.norm_eps = eps
        self.inner = nn.Linear(width, width, bias=False)

    def forward(self, x):
        x = nn.functional.layer_norm(x, x.shape[-1:], eps=self.norm_eps)
        return x + self.inner(x)


class Standardised(nn.Linear):
    """A layer that standardises its weights, as in BiT and NFNets; `beside` the root, or under it."""

    def __init__(self, inputs, outputs, eps=1e-6, beside=False):
        super().__init__(inputs, outputs)
        self.eps, self.beside = eps, beside

    def forward(self, x):
        w = self.weight - self.weight.mean(1, keepdim=True)
        variance = w.square().mean(1, keepdim=True)
        size = variance.sqrt() + self.eps if self.beside else (variance + self.eps).sqrt()
        return nn.functional.linear(x, w / size, self.bias)
