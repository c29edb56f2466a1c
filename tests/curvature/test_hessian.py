"""The top Hessian eigenvalue against dense matrices by two independent ways, on every norm; the model stays as it was."""

import pytest
import torch
from curvature_nets import MAKE, labels, make, same_state, state_of
from oracles_curvature import dense_hessian, difference_hessian
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

from normcore.curvature.hessian import HessianOperator, hessian_top_eigenvalue

WAYS = ("double_backward", "jvp_grad", "finite_difference")


def problem(kind, loss):
    model, x = make(kind)
    classes, targets = labels(x)
    return model, (cross_entropy, (x, classes)) if loss == "ce" else (mse_loss, (x, targets))


@pytest.mark.parametrize("loss", ["ce", "mse"])
@pytest.mark.parametrize("kind", list(MAKE))
def test_equals_the_dense_eigenvalue(kind, loss):
    model, (loss_fn, batch) = problem(kind, loss)
    model.zero_grad()
    loss_fn(model(batch[0]), batch[1]).backward()
    before = state_of(model)
    results = {way: hessian_top_eigenvalue(model, loss_fn, batch, way) for way in WAYS}
    assert same_state(before, state_of(model))
    exact = float(torch.linalg.eigvalsh(dense_hessian(model, loss_fn, batch))[-1])
    for way, result in results.items():
        assert result.converged and result.method == way, (way, result)
        assert abs(result.value / exact - 1) < 1e-6, way
        assert result.residual < 1e-6 and abs(float(result.vector.norm()) - 1) < 1e-9


@pytest.mark.parametrize("kind", ["layer", "batch", "group", "rms"])
def test_equals_first_order_differences(kind):
    model, (loss_fn, batch) = problem(kind, "ce")
    by_differences = difference_hessian(model, loss_fn, batch)
    exact = float(torch.linalg.eigvalsh((by_differences + by_differences.T) / 2)[-1])
    assert abs(hessian_top_eigenvalue(model, loss_fn, batch).value / exact - 1) < 1e-7


def test_the_silent_error_of_jvp_of_jacrev_would_be_seen():
    model, (loss_fn, batch) = problem("layer", "ce")
    values = {n: p.detach() for n, p in model.named_parameters()}
    exact = difference_hessian(model, loss_fn, batch)
    vector = torch.randn(len(exact), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pieces = vector.split([v.numel() for v in values.values()])
    tangent = {n: t.view_as(v) for (n, v), t in zip(values.items(), pieces, strict=True)}
    gradient = torch.func.jacrev(lambda v: loss_fn(functional_call(model, v, (batch[0],)), batch[1]))
    _, moved = torch.func.jvp(gradient, (values,), (tangent,))
    product = exact @ vector
    wrong = torch.cat([m.flatten() for m in moved.values()]) - product
    assert (
        float(wrong.norm() / product.norm()) > 1e-3
    )  # when torch mends this, this control goes and nothing else
    for way in ("double_backward", "jvp_grad"):
        right = HessianOperator(model, loss_fn, batch, way) @ vector - product
        assert float(right.norm() / product.norm()) < 1e-8


def test_a_wrong_product_is_caught_by_its_asymmetry():
    class Padded(
        nn.Linear
    ):  # the gradient of the padding row is left out, the output moves with it all the same
        def forward(self, tokens):
            return nn.functional.embedding(tokens, torch.tanh(self.weight), padding_idx=0).sum(1)

    torch.manual_seed(0)
    model, x = Padded(3, 6, bias=False).double(), torch.randint(6, (20, 4))
    batch = x, labels(x)[0]
    exact = float(torch.linalg.eigvalsh(dense_hessian(model, cross_entropy, batch))[-1])
    right = hessian_top_eigenvalue(model, cross_entropy, batch)
    assert right.converged and abs(right.value / exact - 1) < 1e-6
    wrong = hessian_top_eigenvalue(model, cross_entropy, batch, "jvp_grad")
    assert not wrong.converged and abs(wrong.value / exact - 1) > 1e-5


def test_train_mode_is_not_eval_mode():
    model, (loss_fn, batch) = problem("batch", "ce")
    train = hessian_top_eigenvalue(model, loss_fn, batch).value
    model.eval()
    evaluated = hessian_top_eigenvalue(model, loss_fn, batch).value
    exact = float(torch.linalg.eigvalsh(dense_hessian(model, loss_fn, batch))[-1])
    assert abs(evaluated / exact - 1) < 1e-6 and abs(train / evaluated - 1) > 0.05


@pytest.mark.parametrize("chunk_size", [3, 10])
def test_chunks_give_the_same(chunk_size):
    model, (loss_fn, batch) = problem("layer", "ce")
    whole = hessian_top_eigenvalue(model, loss_fn, batch)
    for way in WAYS:
        parts = hessian_top_eigenvalue(model, loss_fn, batch, way, chunk_size=chunk_size)
        assert parts.converged and abs(parts.value / whole.value - 1) < 1e-7


def test_chunks_are_refused_where_they_would_be_wrong():
    model, (loss_fn, batch) = problem("batch", "ce")
    with pytest.raises(
        ValueError, match="chunk_size must be None while a BatchNorm uses batch statistics, got 4"
    ):
        hessian_top_eigenvalue(model, loss_fn, batch, chunk_size=4)
    model, (_, batch) = problem("layer", "ce")
    total = lambda output, y: cross_entropy(output, y, reduction="sum")  # noqa: E731
    with pytest.raises(ValueError, match="loss_fn must be a mean over samples"):
        hessian_top_eigenvalue(model, total, batch, chunk_size=4)
    with pytest.raises(ValueError, match="chunk_size must be >= 1, got 0"):
        hessian_top_eigenvalue(model, loss_fn, batch, chunk_size=0)


def test_warm_start_saves_products_and_finds_an_overtaking_eigenvalue():
    model, (loss_fn, batch) = problem("layer", "ce")
    cold = hessian_top_eigenvalue(model, loss_fn, batch)
    warm = hessian_top_eigenvalue(model, loss_fn, batch, start=cold.vector, tol=1e-4)
    assert warm.matvecs < hessian_top_eigenvalue(model, loss_fn, batch, tol=1e-4).matvecs
    dense = dense_hessian(model, loss_fn, batch)
    second = torch.linalg.eigh(dense).eigenvectors[:, -2]
    found = hessian_top_eigenvalue(model, loss_fn, batch, start=second)
    assert found.converged and abs(found.value / cold.value - 1) < 1e-6


def test_out_of_products_is_said():
    model, (loss_fn, batch) = problem("layer", "ce")
    result = hessian_top_eigenvalue(model, loss_fn, batch, max_matvecs=2)
    exact = hessian_top_eigenvalue(model, loss_fn, batch).value
    assert not result.converged and result.matvecs == 2 and result.residual > 1e-6 and result.value < exact


def test_float32_and_frozen_parameters():
    model, (loss_fn, batch) = problem("layer", "mse")
    model[3].requires_grad_(False)
    exact = float(torch.linalg.eigvalsh(dense_hessian(model, loss_fn, batch))[-1])
    result = hessian_top_eigenvalue(model, loss_fn, batch)
    assert abs(result.value / exact - 1) < 1e-6 and result.vector.numel() == 42
    single = tuple(t.float() for t in batch)
    for way in ("double_backward", "jvp_grad"):
        narrow = hessian_top_eigenvalue(model.float(), loss_fn, single, way)
        assert narrow.converged and abs(narrow.value / exact - 1) < 1e-4
    rough = hessian_top_eigenvalue(model, loss_fn, single, "finite_difference")
    assert not rough.converged or abs(rough.value / exact - 1) < 1e-4  # it says so where it is not accurate
    assert abs(rough.value / exact - 1) < max(rough.residual, 1e-4)


def test_a_gradient_at_the_reach_of_the_random_state():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.5), nn.Tanh(), nn.Linear(30, 3)).double()
    x = torch.randn(10, 4).double()
    before = state_of(model)
    first, second = (hessian_top_eigenvalue(model, cross_entropy, (x, labels(x)[0]), seed=s) for s in (1, 1))
    other = hessian_top_eigenvalue(model, cross_entropy, (x, labels(x)[0]), seed=2)
    assert same_state(before, state_of(model))
    assert first.converged and first.value == second.value and abs(other.value / first.value - 1) > 1e-3


def test_bad_input():
    model, (loss_fn, batch) = problem("layer", "ce")
    with pytest.raises(ValueError, match=r"method must be one of \('auto', .* got 'power'"):
        hessian_top_eigenvalue(model, loss_fn, batch, "power")
    with pytest.raises(TypeError, match=r"batch must be a pair \(x, y\), got Tensor"):
        hessian_top_eigenvalue(model, loss_fn, batch[0])
    with pytest.raises(ValueError, match="loss_fn must return one number"):
        hessian_top_eigenvalue(model, lambda f, y: f, batch)
    with pytest.raises(ValueError, match="loss_fn must be finite on the batch, got nan"):
        hessian_top_eigenvalue(model, lambda f, y: f.sum() * float("nan"), batch)
    with pytest.raises(ValueError, match="tol must be > 0, got -1"):
        hessian_top_eigenvalue(model, loss_fn, batch, tol=-1)
    with pytest.raises(ValueError, match="start must hold 63 finite numbers"):
        hessian_top_eigenvalue(model, loss_fn, batch, start=torch.ones(5))
    with pytest.raises(ValueError, match="model must have a trainable parameter"):
        hessian_top_eigenvalue(model.requires_grad_(False), loss_fn, batch)
