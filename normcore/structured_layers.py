"""What one layer adds to the NTK: from its inputs and the derivatives of the outputs in its output, no Jacobian.

For output k of sample i a layer y = W x has the gradient sum_s delta_{iks} x_{is}^T over its positions s
(pixels, tokens). Two ways to multiply with the kernel: by factors (delta and x are kept), or by rows (the gradients are kept).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOW = 20.0
"""Arithmetic operations in the time that one number takes to come from memory."""

PRODUCTS = 15.0
"""Products that an eigenvalue takes, for the choice between the two ways."""


class Unstructured(Exception):  # noqa: N818 - a verdict that is caught, not a failure
    """The model has a part that the structured kernel does not cover."""


def vecdot(a: Tensor, b: Tensor) -> Tensor:
    """Sums of products over the last axis: several times faster than bmm with vectors."""
    total: Tensor = torch.linalg.vecdot(a, b)
    return total


class Factors:
    """Keeps delta (m, K, g, S, out) and x (g, m S, in); the products go through W or through the Gram matrix."""

    def __init__(self, x: Tensor) -> None:
        """Hold the inputs (m, g, S, in)."""
        self.x = x.transpose(0, 1).flatten(1, 2).contiguous()
        self.deltas: list[Tensor] = []
        _, positions, inputs = self.x.shape
        self.gram = self.x @ self.x.transpose(1, 2) if positions < 2 * inputs else None

    def add(self, delta: Tensor) -> None:
        """Take the delta (m, g, S, out) of the next output."""
        self.deltas.append(delta)

    def close(self) -> None:
        """Stack what came."""
        self.delta = torch.stack(self.deltas, dim=1)
        self.deltas = []

    def apply(self, u: Tensor) -> Tensor:
        """The layer's part of the kernel times u (m, K)."""
        m, _, g, s, out = self.delta.shape
        rows = self.delta.flatten(2)
        mixed = torch.bmm(u[:, None], rows).view(m, g, s, out).transpose(0, 1).reshape(g, m * s, out)
        moved = self.gram @ mixed if self.gram is not None else self.x @ (self.x.transpose(1, 2) @ mixed)
        moved = moved.view(g, m, s, out).transpose(0, 1).reshape(m, 1, -1)
        return vecdot(rows, moved)


class Rows:
    """Keeps the gradients of every output, (m, K, parameters); uses of one parameter add up."""

    def __init__(self) -> None:
        """Start empty."""
        self.rows: list[Tensor] = []

    def add(self, k: int, row: Tensor) -> None:
        """Add a call's gradients (m, parameters) of output k."""
        if k == len(self.rows):
            self.rows.append(row)
        else:
            self.rows[k] = self.rows[k] + row

    def close(self) -> None:
        """Stack what came."""
        self.matrix = torch.stack(self.rows, dim=1).flatten(0, 1)
        self.rows = []

    def apply(self, u: Tensor) -> Tensor:
        """The layer's part of the kernel times u (m, K)."""
        return (self.matrix @ (u.flatten() @ self.matrix)).view_as(u)


class Tokens:
    """An embedding: keeps delta (m, K, S, E) and the token numbers (m, S)."""

    def __init__(self, tokens: Tensor, rows: int, padding: int | None) -> None:
        """Hold the tokens; the padding row has no gradient."""
        self.tokens, self.count = tokens.flatten(), rows
        self.deltas: list[Tensor] = []
        self.live = None if padding is None else (tokens != padding)

    def add(self, delta: Tensor) -> None:
        """Take the delta (m, S, E) of the next output."""
        self.deltas.append(delta if self.live is None else delta * self.live[..., None])

    def close(self) -> None:
        """Stack what came."""
        self.delta = torch.stack(self.deltas, dim=1)
        self.deltas = []

    def apply(self, u: Tensor) -> Tensor:
        """The layer's part of the kernel times u (m, K)."""
        m, _, s, e = self.delta.shape
        mixed = torch.bmm(u[:, None], self.delta.flatten(2)).view(m * s, e)
        table = mixed.new_zeros(self.count, e).index_add_(0, self.tokens, mixed)
        return vecdot(self.delta.flatten(2), table[self.tokens].view(m, 1, s * e))


def prefers_rows(outputs: int, positions: int, inputs: int) -> bool:
    """Whether keeping gradients beats keeping factors, by the cost of the products that an eigenvalue takes."""
    rows = 2 * SLOW * outputs * inputs + 2 * outputs * positions * inputs / PRODUCTS
    return rows < 4 * positions * inputs + 2 * SLOW * outputs * positions


def linear_inputs(module: Any, x: Tensor, samples: int) -> Tensor:
    """The input of a Linear as (m, 1, S, in)."""
    return x.reshape(samples, 1, -1, x.shape[-1])


def conv_inputs(module: Any, x: Tensor, samples: int) -> Tensor:
    """The patches that a convolution sees, as (m, g, S, in)."""
    if module.padding_mode != "zeros" or x.dim() != len(module.kernel_size) + 2 or len(x) != samples:
        raise Unstructured(f"a {type(module).__name__} with padding_mode={module.padding_mode!r}")
    lift = (1,) * (2 - len(module.kernel_size))
    kernel, stride, dilation = (lift + tuple(v) for v in (module.kernel_size, module.stride, module.dilation))
    padded = functional.pad(x, module._reversed_padding_repeated_twice)
    if lift:
        padded = padded[:, :, None]
    patches = functional.unfold(padded, kernel, dilation=dilation, stride=stride)
    groups: int = module.groups
    return patches.view(samples, groups, -1, patches.shape[-1]).transpose(2, 3)


def outputs_of_linear(delta: Tensor, samples: int, groups: int) -> Tensor:
    """Delta of a Linear as (m, 1, S, out)."""
    return delta.reshape(samples, 1, -1, delta.shape[-1])


def outputs_of_conv(delta: Tensor, samples: int, groups: int) -> Tensor:
    """Delta of a convolution as (m, g, S, out)."""
    return delta.reshape(samples, groups, -1, math.prod(delta.shape[2:])).transpose(2, 3)


def normalized(module: Any, x: Tensor) -> Tensor:
    """The input of a norm layer as it is before gain and shift."""
    match module:
        case nn.LayerNorm():
            return functional.layer_norm(x, module.normalized_shape, eps=module.eps)
        case nn.GroupNorm():
            return functional.group_norm(x, module.num_groups, eps=module.eps)
        case nn.RMSNorm():
            return functional.rms_norm(x, module.normalized_shape, eps=module.eps)
    if (
        not isinstance(module, nn.modules.batchnorm._BatchNorm)
        or module.training
        or module.running_mean is None
    ):
        raise Unstructured(f"a {type(module).__name__} with batch statistics")
    return functional.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)


def norm_row(module: Any, normal: Tensor, delta: Tensor, samples: int) -> Tensor:
    """Gradients of gain and shift, (m, parameters)."""
    weight = module.weight
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        shape: tuple[int, ...] = (samples, -1, weight.numel())
        axis = 1
    else:
        shape, axis = (samples, weight.numel(), -1), 2
    delta, normal = delta.reshape(shape), normal.reshape(shape)
    parts = []
    if weight.requires_grad:
        parts.append((delta * normal).sum(axis))
    if getattr(module, "bias", None) is not None and module.bias.requires_grad:
        parts.append(delta.sum(axis))
    return torch.cat(parts, dim=1)
