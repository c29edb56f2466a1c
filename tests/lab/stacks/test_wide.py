"""Wide nets one by one, and their kernels against the Jacobian."""

import math

import pytest
import torch

from normcore.lab.stacks.stack import WideStack, top_eigenpair, wide_curvature, wide_kernel

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
F64 = {"dtype": torch.float64}
PHI = {"relu": torch.relu, "tanh": torch.tanh, "identity": lambda h: h}


def output(weights, x, activation):
    """One net written out."""
    h, gain = x, math.sqrt(2) if activation == "relu" else 1.0
    for w in weights[:-1]:
        h = PHI[activation](gain * h @ w / math.sqrt(w.shape[0]))
    return h @ weights[-1] / math.sqrt(weights[-1].shape[0])


def dense_kernel(weights, x, activation):
    """J J^T / m from torch's own Jacobian of all outputs in all weights."""
    jacobians = torch.autograd.functional.jacobian(lambda *w: output(w, x, activation), tuple(weights))
    flat = torch.cat([j.reshape(x.shape[0] * weights[-1].shape[1], -1) for j in jacobians], dim=1)
    return flat @ flat.T / x.shape[0]


@pytest.mark.parametrize("activation", ["relu", "tanh", "identity"])
@pytest.mark.parametrize("sizes", [(5, 16, 1), (5, 12, 10, 3)])
def test_outputs_and_kernels(activation, sizes):
    nets = WideStack(sizes, seeds=[0, 4], activation=activation, **F64)
    for r in range(2):
        weights = [w.detach()[r] for w in nets.weights]
        assert torch.allclose(nets(X)[r], output(weights, X, activation), rtol=1e-12)
        dense = dense_kernel(weights, X, activation)
        assert torch.allclose(wide_kernel(nets, X)[r], dense, rtol=1e-10, atol=1e-14)
        top = torch.linalg.eigvalsh(dense)[-1]
        assert wide_curvature(nets, X, iterations=400)[r].item() == pytest.approx(top.item(), rel=1e-9)
    assert not torch.allclose(wide_kernel(nets, X)[0], wide_kernel(nets, X)[1])


def test_the_size_of_the_output_does_not_grow_with_the_width():
    for width in (64, 4096):
        nets = WideStack((5, width, 1), seeds=range(40), **F64)
        assert 0.3 < nets(X).pow(2).mean().item() / (X.pow(2).sum(dim=1).mean().item() / 5) < 3


def test_an_antisymmetric_net_starts_at_zero_with_the_kernel_of_an_ordinary_one():
    nets = WideStack((5, 512, 1), seeds=range(8), antisymmetric=True, **F64)
    assert nets(X).abs().max() < 1e-12
    plain = WideStack((5, 512, 1), seeds=range(8), **F64)
    assert plain(X).abs().max() > 0.5  # control
    ratio = wide_curvature(nets, X).mean() / wide_curvature(plain, X).mean()
    assert 0.9 < ratio.item() < 1.1


def test_eigenpairs_of_known_matrices():
    generator = torch.Generator().manual_seed(1)
    q = torch.linalg.qr(torch.randn(3, 6, 6, generator=generator, **F64))[0]
    values = torch.tensor([5.0, 2.0, 1.0, 0.5, 0.1, 0.0], **F64)
    value, vector = top_eigenpair(q @ torch.diag(values) @ q.transpose(1, 2), 60)
    assert torch.allclose(value, torch.full((3,), 5.0, **F64), rtol=1e-12)
    assert torch.allclose((vector * q[:, :, 0]).sum(dim=1).abs(), torch.ones(3, **F64), rtol=1e-12)
    rough, _ = top_eigenpair(q @ torch.diag(values) @ q.transpose(1, 2), 2)  # control: too few
    assert (rough < 5 - 1e-4).all()


def test_bad_input():
    with pytest.raises(ValueError, match="activation must be one of .*, got 'gelu'"):
        WideStack((5, 16, 1), seeds=[0], activation="gelu")
    with pytest.raises(ValueError, match=r"sizes must be \(inputs, hidden, ..., outputs\), got \(5, 1\)"):
        WideStack((5, 1), seeds=[0])
    with pytest.raises(ValueError, match="even last width to be antisymmetric, got 15"):
        WideStack((5, 15, 1), seeds=[0], antisymmetric=True)
    with pytest.raises(ValueError, match="seeds must name at least one run"):
        WideStack((5, 16, 1), seeds=[])
