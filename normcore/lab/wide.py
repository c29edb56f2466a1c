"""Wide nets in NTK parametrisation side by side: a leading axis over runs, each with a learning rate of its own.

h_0 = x, h_{l+1} = phi(g h_l W_l / sqrt(fan_in)), f = h_L V / sqrt(n), all weights N(0, 1), no bias: the functions
whose tangent kernel stays put as the width n grows.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normcore.lab.layers import ACTIVATIONS

GAINS = {"relu": 2**0.5, "tanh": 1.0, "identity": 1.0}
"""Factors g that keep the size of the activations through ReLU layers."""


class WideStack(nn.Module):
    """R fully connected nets of one shape in NTK parametrisation.

    Args:
        sizes: (inputs, hidden, ..., outputs).
        seeds: one for each run; equal seeds are equal nets.
        activation: "relu", "tanh" or "identity".
        antisymmetric: pairs the hidden units of the last hidden layer, equal weights in and opposite weights out, so that
            f = 0 at the start and the kernel is that of an ordinary net.
        dtype: float32 or float64.

    Raises:
        ValueError: the activation is unknown, sizes has fewer than three entries, there is no seed, or
            `antisymmetric` has an odd last width.

    Example:
        >>> nets = WideStack((64, 256, 1), seeds=[0, 0, 1])
        >>> nets(torch.randn(5, 64)).shape
        torch.Size([3, 5, 1])

    Source: Jacot et al. (2018), arXiv 1806.07572; Lewkowycz et al. (2020), arXiv 2003.02218.

    """

    def __init__(
        self,
        sizes: Sequence[int],
        seeds: Sequence[int],
        *,
        activation: str = "relu",
        antisymmetric: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Draw each run's weights from its own seed."""
        super().__init__()
        if activation not in GAINS:
            raise ValueError(f"activation must be one of {sorted(GAINS)}, got {activation!r}")
        if len(sizes) < 3:
            raise ValueError(f"sizes must be (inputs, hidden, ..., outputs), got {tuple(sizes)}")
        if not len(seeds):
            raise ValueError("seeds must name at least one run, got none")
        if antisymmetric and sizes[-2] % 2:
            raise ValueError(f"sizes must have an even last width to be antisymmetric, got {sizes[-2]}")
        self.gain, self.activation = GAINS[activation], ACTIVATIONS[activation]()
        drawn = [_draw(sizes, int(seed), antisymmetric, dtype) for seed in seeds]
        self.weights = nn.ParameterList([torch.stack(layer) for layer in zip(*drawn, strict=True)])

    @property
    def runs(self) -> int:
        """How many nets there are."""
        return len(self.weights[0])

    def layers(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What enters each weight, (R, m, fan_in), scaled as it is multiplied, and what leaves it."""
        h, enters, leaves = x.flatten(1).expand(self.runs, -1, -1), list[Tensor](), list[Tensor]()
        for index, w in enumerate(self.weights):
            last = index == len(self.weights) - 1
            enters.append(h * ((1.0 if last else self.gain) / w.shape[1] ** 0.5))
            leaves.append(torch.bmm(enters[-1], w))
            h = self.activation(leaves[-1])
        return enters, leaves

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (R, m, K) for inputs (m, ...) common to all runs."""
        return self.layers(x)[1][-1]


def _draw(sizes: Sequence[int], seed: int, antisymmetric: bool, dtype: torch.dtype) -> list[Tensor]:
    """N(0, 1) weights of one net."""
    generator = torch.Generator().manual_seed(seed)
    pairs = list(itertools.pairwise(sizes))
    weights = [torch.randn(a, b, generator=generator, dtype=dtype) for a, b in pairs]
    if antisymmetric:
        half = sizes[-2] // 2
        weights[-2][:, half:] = weights[-2][:, :half]
        weights[-1][half:] = -weights[-1][:half]
    return weights


def wide_kernel(nets: WideStack, x: Tensor) -> Tensor:
    """Compute each run's tangent kernel J J^T / m over all outputs, exactly, layer by layer.

    The kernel of a linear layer is the product, entry by entry, of the Gram matrices of what enters it and of what
    comes back to it; the layers' kernels add up.

    Args:
        nets: R of them.
        x: (m, ...) inputs.

    Returns:
        (R, m K, m K), the outputs of an input next to each other.

    Example:
        >>> wide_kernel(WideStack((3, 8, 2), seeds=[0]), torch.randn(4, 3)).shape
        torch.Size([1, 8, 8])

    """
    enters, leaves = nets.layers(x)
    outputs = leaves[-1]
    runs, m, classes = outputs.shape
    returns = [torch.autograd.grad(outputs[:, :, k].sum(), leaves, retain_graph=True) for k in range(classes)]
    kernel = torch.zeros(runs, m, classes, m, classes, dtype=x.dtype)
    for layer, entering in enumerate(enters):
        gram = torch.bmm(entering, entering.transpose(1, 2)).detach()
        back = torch.stack([returned[layer] for returned in returns], dim=2).flatten(1, 2)
        product = torch.bmm(back, back.transpose(1, 2)).view(runs, m, classes, m, classes)
        kernel += gram[:, :, None, :, None] * product
    return kernel.view(runs, m * classes, m * classes) / m


def wide_curvature(nets: WideStack, x: Tensor, iterations: int = 60) -> Tensor:
    """Find the top eigenvalue of each run's tangent kernel by power iteration, (R,)."""
    return top_eigenpair(wide_kernel(nets, x), iterations)[0]


def top_eigenpair(kernel: Tensor, iterations: int = 60) -> tuple[Tensor, Tensor]:
    """Iterate positive semi-definite matrices (R, N, N) to their top eigenvalues (R,) and unit vectors (R, N).

    Relative error of the value about the squared ratio of the first two eigenvalues to the power `iterations`.

    Example:
        >>> value, vector = top_eigenpair(torch.diag(torch.tensor([3.0, 1.0, 0.5])).expand(2, 3, 3))
        >>> [round(v, 5) for v in value.tolist()]
        [3.0, 3.0]

    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(kernel.shape[-1], 1, generator=generator, dtype=kernel.dtype)
    vector = start.expand(len(kernel), -1, -1)
    for _ in range(iterations):
        vector = torch.bmm(kernel, vector)
        vector = vector / vector.norm(dim=1, keepdim=True)
    value = (vector * torch.bmm(kernel, vector)).sum(dim=(1, 2))
    return value, vector[:, :, 0]
