"""Operators multiply, count and speak scipy; results are what they say."""

import pytest
import torch

from normcore.curvature.operator import EigenResult, SymmetricOperator, default_tolerance


def operator(n=30, dtype=torch.float64):
    torch.manual_seed(0)
    a = torch.randn(n, n, dtype=dtype)
    a = a + a.T
    return a, SymmetricOperator(a.mv, n, a.dtype, a.device)


def test_products_with_vectors_and_matrices():
    a, op = operator()
    v = torch.randn(30, 4, dtype=torch.float64)
    assert torch.allclose(op @ v, a @ v) and op.matvecs == 4
    assert torch.equal(op @ v[:, 0], a.mv(v[:, 0])) and op.matvecs == 5
    with pytest.raises(ValueError, match=r"other must be of shape \(30,\) or \(30, k\), got \(29,\)"):
        op @ torch.ones(29)


def test_results_are_frozen_numbers():
    result = EigenResult(2.0, torch.ones(1), 0.0, 1, True)
    assert float(result) == 2.0 and result.method == "lanczos"
    with pytest.raises(AttributeError):
        result.value = 3.0
    assert default_tolerance(torch.float64) == 1e-6 < default_tolerance(torch.float32) == 1e-4
