"""Lanczos against eigh on hard spectra; every way to be wrong is said."""

import pytest
import torch

from normcore.curvature.operator import SymmetricOperator, top_eigenpair, top_eigenpairs


def rotated(spectrum, seed=0):
    """A dense symmetric matrix with this spectrum, its operator, its eigenvectors."""
    spectrum = torch.as_tensor(spectrum, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(
        torch.randn(len(spectrum), len(spectrum), dtype=torch.float64, generator=generator)
    )
    matrix = (q * spectrum) @ q.T
    return matrix, SymmetricOperator(matrix.mv, len(spectrum), matrix.dtype, matrix.device), q


SPECTRA = {
    "decaying": 0.9 ** torch.arange(200.0),
    "uniform": torch.linspace(-1, 1, 300),
    "close pair": torch.cat([torch.tensor([1.0, 1.0 - 1e-4]), torch.linspace(0, 0.9, 200)]),
    "double": torch.cat([torch.tensor([1.0, 1.0]), torch.linspace(0, 0.9, 100)]),
    "large negative": torch.cat([torch.tensor([1.0]), torch.linspace(-50, 0.5, 150)]),
    "all negative": -1.0 - torch.arange(50.0),
    "small": torch.tensor([3.0, 1.0, -2.0]),
    "one": torch.tensor([2.5]),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", list(SPECTRA))
def test_equals_eigh(name, seed):
    matrix, op, _ = rotated(SPECTRA[name], seed)
    result = top_eigenpair(op, seed=seed, max_matvecs=600)
    exact = float(SPECTRA[name].double().max())
    assert result.converged and abs(result.value / exact - 1) < 1e-6
    true_residual = float((matrix @ result.vector - result.value * result.vector).norm()) / abs(exact)
    assert abs(true_residual - result.residual) < 1e-9 and abs(float(result.vector.norm()) - 1) < 1e-12


def test_restarts_keep_what_was_found():
    _, op, _ = rotated(torch.cat([torch.tensor([1.0]), torch.linspace(0, 0.99, 400)]))
    small, large = (top_eigenpair(op, basis_size=b, max_matvecs=500) for b in (10, 200))
    assert small.converged and large.converged and large.matvecs <= small.matvecs < 4 * large.matvecs
    assert abs(small.value - 1) < 1e-6


def test_exhausted_spaces_are_exact():
    for matrix in (torch.eye(20), torch.zeros(20, 20), torch.diag(torch.tensor([2.0] * 10 + [1.0] * 10))):
        matrix = matrix.double()
        result = top_eigenpair(SymmetricOperator(matrix.mv, 20, matrix.dtype, matrix.device))
        assert result.converged and result.matvecs <= 2 and abs(result.value - float(matrix.max())) < 1e-12


def test_a_start_on_another_eigenvector_does_not_stay_there():
    _, op, q = rotated(SPECTRA["decaying"])
    result = top_eigenpair(op, start=q[:, 1])
    assert result.converged and abs(result.value - 1) < 1e-6
    stuck = top_eigenpair(op, start=q[:, 1], share=0.0)  # without the random part it does
    assert abs(stuck.value - 0.9) < 1e-6


def test_a_good_start_saves_products():
    _, op, q = rotated(SPECTRA["uniform"])
    assert top_eigenpair(op, start=q[:, -1], tol=1e-3).matvecs < top_eigenpair(op, tol=1e-3).matvecs
    assert top_eigenpair(op, start=q[:, -1], share=0.0).matvecs == 1


def test_out_of_products():
    _, op, _ = rotated(SPECTRA["uniform"])
    result = top_eigenpair(op, max_matvecs=5)
    assert not result.converged and result.matvecs == 5 and result.value < 1 and result.residual > 1e-6


def test_an_operator_that_is_not_symmetric_never_converges():
    matrix, _, _ = rotated(SPECTRA["decaying"])
    skew = torch.randn(200, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bent = matrix + 1e-3 * (skew - skew.T)
    result = top_eigenpair(SymmetricOperator(bent.mv, 200, bent.dtype, bent.device))
    assert not result.converged


@pytest.mark.parametrize("name", ["decaying", "double", "large negative", "all negative", "small"])
def test_several_equal_eigh(name):
    matrix, op, _ = rotated(SPECTRA[name])
    k = min(5, op.size)
    exact = SPECTRA[name].double().sort(descending=True).values[:k]
    found = top_eigenpairs(op, k, tol=1e-8, max_matvecs=600)
    values = torch.tensor([result.value for result in found], dtype=torch.float64)
    assert all(result.converged for result in found) and torch.allclose(values, exact, rtol=1e-10)
    for result in found:
        true = float((matrix @ result.vector - result.value * result.vector).norm()) / abs(result.value)
        assert abs(true - result.residual) < 1e-12
    assert op.matvecs == sum(result.matvecs for result in found)


def test_what_one_misses_makes_all_after_it_doubtful():
    _, op, _ = rotated(SPECTRA["uniform"])
    found = top_eigenpairs(op, 3, max_matvecs=12)
    assert not any(result.converged for result in found)


def test_float32():
    matrix, _, _ = rotated(SPECTRA["decaying"])
    narrow = matrix.float()
    result = top_eigenpair(SymmetricOperator(narrow.mv, 200, narrow.dtype, narrow.device))
    assert result.converged and abs(result.value - 1) < 1e-5 and result.vector.dtype == torch.float32


def test_bad_input():
    _, op, _ = rotated(SPECTRA["small"])
    broken = SymmetricOperator(lambda v: v * float("nan"), 3, torch.float64, torch.device("cpu"))
    with pytest.raises(ValueError, match="the product of the operator must be finite, got NaN or infinity"):
        top_eigenpair(broken)
    with pytest.raises(ValueError, match="tol must be finite and > 0, got nan"):
        top_eigenpair(op, tol=float("nan"))
    with pytest.raises(ValueError, match="start must hold 3 finite numbers, not all 0"):
        top_eigenpair(op, start=torch.zeros(3))
    with pytest.raises(ValueError, match="basis_size must be >= 8, got 2"):
        top_eigenpair(op, basis_size=2)
