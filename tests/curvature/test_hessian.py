"""The top Hessian eigenvalue against dense matrices by two independent ways, on every norm; the model stays as it was."""

import pytest
import torch
from curvature_nets import MAKE, labels, make, same_state, state_of
from oracles_curvature import dense_hessian, difference_hessian
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint

import normcore as nc
from normcore.curvature.hessian import hessian_eigenvalues, hessian_top_eigenvalue, hessian_trace
from normcore.curvature.hessian_operator import HessianOperator

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


def per_sample(output, y):
    """A mean with a weight for each sample, which comes with its target."""
    return (y[:, 0] * (output.sum(1) - y[:, 1]) ** 2).sum() / y[:, 0].sum()


CLASS_WEIGHTS = torch.tensor([20.0, 1.0, 0.1], dtype=torch.float64)
UNEVEN = {
    "weighted classes": lambda f, y: cross_entropy(f, y[:, 2].long(), CLASS_WEIGHTS),
    "ignored samples": lambda f, y: cross_entropy(f, y[:, 3].long()),
    "sum": lambda f, y: cross_entropy(f, y[:, 2].long(), reduction="sum"),
    "weighted samples": per_sample,
}


@pytest.mark.parametrize("name", list(UNEVEN))
def test_chunks_of_unlike_weight(name):
    model, x = make("layer")
    classes = torch.arange(10) // 4  # the classes come in chunks
    kept = torch.where(torch.arange(10) < 4, -100, classes)  # one chunk is left out as a whole
    weight, target = torch.linspace(0.1, 3, 10), torch.randn(10)
    y, loss_fn = torch.stack([weight, target, classes, kept], dim=1).double(), UNEVEN[name]
    exact = float(torch.linalg.eigvalsh(dense_hessian(model, loss_fn, (x, y)))[-1])
    for way in WAYS:
        parts = hessian_top_eigenvalue(model, loss_fn, (x, y), way, chunk_size=4)
        assert parts.converged and abs(parts.value / exact - 1) < 1e-6, way
    pieces = [(a, b) for a, b in zip(x.split(4), y.split(4), strict=True) if loss_fn(model(a), b).isfinite()]
    plain = sum(len(a) / 10 * dense_hessian(model, loss_fn, (a, b)) for a, b in pieces)
    assert abs(float(torch.linalg.eigvalsh(plain)[-1]) / exact - 1) > 0.03  # the mean over chunks is another


COUPLED = {
    "root of a mean": lambda f, y: cross_entropy(f, y).sqrt(),
    "soft maximum": lambda f, y: torch.logsumexp(cross_entropy(f, y, reduction="none"), 0),
    "samples compared": lambda f, y: cross_entropy(f @ f.T, torch.arange(len(f))),
}


@pytest.mark.parametrize("chunk_size", [4, 5])  # three chunks, and just two
@pytest.mark.parametrize("name", list(COUPLED))
def test_chunks_are_refused_where_the_loss_couples_them(name, chunk_size):
    model, (_, batch) = problem("layer", "ce")
    assert hessian_top_eigenvalue(model, COUPLED[name], batch, tol=0.1).value > 0
    with pytest.raises(
        ValueError, match=f"loss_fn must be a sum or mean .* when chunk_size={chunk_size}, got"
    ):
        hessian_top_eigenvalue(model, COUPLED[name], batch, chunk_size=chunk_size)


def test_chunks_are_refused_where_the_model_couples_them():
    model, (loss_fn, batch) = problem("batch", "ce")
    with pytest.raises(
        ValueError, match="chunk_size must be None while a BatchNorm uses batch statistics, got 4"
    ):
        hessian_top_eigenvalue(model, loss_fn, batch, chunk_size=4)
    with pytest.raises(ValueError, match="samples must not interact when chunk_size=4"):
        hessian_top_eigenvalue(
            nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3).double()), loss_fn, batch, chunk_size=4
        )
    with pytest.raises(ValueError, match="chunk_size must be >= 1, got 0"):
        hessian_top_eigenvalue(problem("layer", "ce")[0], loss_fn, batch, chunk_size=0)
    with pytest.raises(TypeError, match="batch must be two tensors of one length when chunk_size is given"):
        hessian_top_eigenvalue(model, loss_fn, (batch[0], None), chunk_size=4)


def test_chunks_where_the_residuals_vanish():
    model, x = make("layer")
    y = model(x).detach()  # no gradient at all at these weights
    exact = float(torch.linalg.eigvalsh(dense_hessian(model, mse_loss, (x, y)))[-1])
    assert abs(hessian_top_eigenvalue(model, mse_loss, (x, y), chunk_size=4).value / exact - 1) < 1e-6


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off(mode):
    model, (loss_fn, batch) = problem("batch", "ce")
    exact = hessian_top_eigenvalue(model, loss_fn, batch).value
    with mode():
        again = tuple(t.clone() for t in batch)  # tensors of inference mode, which autograd refuses
        assert again[0].is_inference() == (mode is torch.inference_mode)
        for way in WAYS:
            result = hessian_top_eigenvalue(model, loss_fn, again, way)
            assert abs(result.value / exact - 1) < 1e-6, way
            warm = hessian_top_eigenvalue(model, loss_fn, again, way, start=result.vector)
            assert abs(warm.value / exact - 1) < 1e-6, way
        assert hessian_trace(model, loss_fn, again, matvecs=100)[0] > exact
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("kind, k", [("layer", 6), ("conv", 3)])
def test_several_eigenvalues(kind, k):
    model, (loss_fn, batch) = problem(kind, "ce")
    dense = dense_hessian(model, loss_fn, batch)
    exact = torch.linalg.eigvalsh(dense).flip(0)[:k]
    for way in ("double_backward", "finite_difference"):
        found = hessian_eigenvalues(model, loss_fn, batch, k, way, tol=1e-5)
        values = torch.tensor([result.value for result in found])
        assert float((values / exact - 1).abs().max()) < 1e-5
        assert all(result.converged and result.method == way and result.matvecs > 2 for result in found)
        vectors = torch.stack([result.vector for result in found])
        assert torch.allclose(vectors @ vectors.T, torch.eye(k).double(), atol=1e-8)
        for value, vector in zip(values, vectors, strict=True):
            assert float((dense @ vector - value * vector).norm()) < 1e-4 * float(value)
    with pytest.raises(ValueError, match=f"k must be <= {len(dense)}, the number of all eigenvalues"):
        hessian_eigenvalues(model, loss_fn, batch, len(dense) + 1)


def test_multiple_eigenvalues_and_those_that_vanish():
    # A linear net has the eigenvalues of X^T X once for each output, and none where X has no rows left.
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3, bias=False).double(), torch.randn(2, 5).double()
    half = lambda f, y: ((f - y) ** 2).sum() / 2  # noqa: E731
    found = hessian_eigenvalues(model, half, (x, torch.zeros(2, 3).double()), 8)
    exact = torch.linalg.eigvalsh(x @ x.T).flip(0).repeat_interleave(3)
    values = torch.tensor([result.value for result in found], dtype=torch.float64)
    assert torch.allclose(values[:6], exact, rtol=1e-9) and float(values[6:].abs().max()) < 1e-12
    assert all(result.converged for result in found)


def test_the_trace():
    model, (loss_fn, batch) = problem("layer", "ce")
    dense = dense_hessian(model, loss_fn, batch)
    trace, spread = (
        float(dense.trace()),
        float(2 * (dense.square().sum() - dense.diagonal().square().sum())) ** 0.5,
    )
    value, error = hessian_trace(model, loss_fn, batch, matvecs=len(dense))
    assert error == 0.0 and value == pytest.approx(trace, rel=1e-12)
    few = [hessian_trace(model, loss_fn, batch, matvecs=20, seed=seed) for seed in range(30)]
    scores = torch.tensor([(value - trace) / error for value, error in few])
    assert float(scores.abs().max()) < 5 and 0.5 < float(scores.std()) < 1.6
    errors = torch.tensor([error for _, error in few])
    assert float(errors.mean()) == pytest.approx(spread / 20**0.5, rel=0.2)
    rough, doubt = hessian_trace(model, loss_fn, batch, "finite_difference", matvecs=len(dense))
    assert 0 < abs(rough - trace) < 10 * doubt < 1e-4 * trace


class Checkpointed(nn.Module):
    """A net that computes its middle again in the backward pass."""

    def __init__(self, mode):
        super().__init__()
        torch.manual_seed(0)
        self.mode, self.first = mode, nn.Linear(4, 6)
        self.middle = nn.Sequential(nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.last = nn.Linear(6, 3)
        self.double()

    def forward(self, x):
        x = self.first(x)
        if self.mode != "plain":
            return self.last(checkpoint(self.middle, x, use_reentrant=self.mode == "reentrant"))
        return self.last(self.middle(x))


def test_activation_checkpointing():
    model, plain, x = Checkpointed("new"), Checkpointed("plain"), torch.randn(10, 4).double()
    batch = x, labels(x)[0]
    dense = dense_hessian(plain, cross_entropy, batch)
    exact = float(torch.linalg.eigvalsh(dense)[-1])
    for way in ("double_backward", "finite_difference"):
        operator = HessianOperator(model, cross_entropy, batch, way)
        assert abs(hessian_top_eigenvalue(model, cross_entropy, batch, way).value / exact - 1) < 1e-6
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1
        vector = torch.ones(len(dense)).double()
        assert torch.allclose(
            operator @ vector, dense @ vector, rtol=1e-6, atol=1e-8
        )  # the model may train on
        model.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="method must not be 'jvp_grad' under activation checkpointing"):
        hessian_top_eigenvalue(model, cross_entropy, batch, "jvp_grad")
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        hessian_top_eigenvalue(Checkpointed("reentrant"), cross_entropy, batch)


def test_a_gradient_taken_when_the_model_holds_other_values_is_wrong():
    # Why derivatives belong inside `Snapshot.run`: here the middle is computed again with the model's own weights.
    model, plain, x = Checkpointed("new"), Checkpointed("plain"), torch.randn(10, 4).double()
    moved = {n: (1.5 * p).detach().requires_grad_() for n, p in model.named_parameters()}
    gradients = [
        torch.autograd.grad(functional_call(net, moved, (x,)).square().sum(), list(moved.values()))
        for net in (model, plain)
    ]
    wrong, right = (torch.cat([g.flatten() for g in each]) for each in gradients)
    assert float((wrong - right).norm()) > 0.05 * float(right.norm())


def test_before_the_first_step_of_a_run_under_exp_lr():
    def curvatures(convert):
        model, (loss_fn, batch) = problem("batch", "ce")
        groups = [
            {"params": list(model[0].parameters()), "scale_invariant": True},
            {"params": [model[3].weight]},
        ]
        optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.01)
        if convert:
            nc.ExpLR(optimizer, model)
        read = [
            hessian_top_eigenvalue(model, loss_fn, batch).value,
            nc.ntk_top_eigenvalue(model, batch[0]).value,
        ]
        for _ in range(3):
            optimizer.zero_grad()
            loss_fn(model(batch[0]), batch[1]).backward()
            optimizer.step()
        return read, float(loss_fn(model(batch[0]), batch[1]).detach())

    (plain, loss), (converted, same) = curvatures(False), curvatures(True)
    assert converted == plain and same == pytest.approx(loss, rel=1e-12)


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


class Warped(nn.Module):
    """Looks at an image where its own weights say: an interpolation."""

    def __init__(self):
        super().__init__()
        self.turn, self.head = nn.Linear(25, 6), nn.Linear(25, 3)

    def forward(self, x):
        grid = nn.functional.affine_grid(self.turn(x.flatten(1)).view(-1, 2, 3), x.shape, align_corners=False)
        return self.head(nn.functional.grid_sample(x, grid, align_corners=False).flatten(1))


class Tied(nn.Module):
    """One table for the words that come in and go out."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)

    def forward(self, tokens):
        return self.norm(self.embed(tokens)).mean(1) @ self.embed.weight.T


def letters(output, y):
    """A loss of sequences, for which torch has no second derivative."""
    logs = output.view(-1, 4, 3).log_softmax(-1).transpose(0, 1)
    return nn.functional.ctc_loss(logs, y, torch.full((len(y),), 4), torch.full((len(y),), 2))


@pytest.mark.parametrize("name", ["grid_sample", "CTC", "tied"])
def test_what_people_measure(name):
    torch.manual_seed(0)
    x, y = torch.randn(8, 1, 5, 5).double(), torch.randint(3, (8,))
    model, loss_fn = Warped(), cross_entropy
    if name == "CTC":
        model, loss_fn, y = (
            nn.Sequential(nn.Flatten(), nn.Linear(25, 12)),
            letters,
            torch.tensor([[1, 2]] * 8),
        )
    if name == "tied":
        model, x = Tied(), torch.randint(5, (8, 3))
    model = model.double()
    by_differences = difference_hessian(model, loss_fn, (x, y))
    exact = float(torch.linalg.eigvalsh((by_differences + by_differences.T) / 2)[-1])
    found = hessian_top_eigenvalue(model, loss_fn, (x, y))
    assert found.converged and abs(found.value / exact - 1) < 1e-5
    old = torch.__version__.startswith("2.4")  # which has no second derivative of grid_sample
    assert found.method == (
        "finite_difference" if name == "CTC" or (old and name == "grid_sample") else "double_backward"
    )


def test_sparse_embeddings_are_refused():
    table = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 3)).double()
    tokens, y = torch.randint(5, (10, 2)), torch.randint(3, (10,))
    for measured in (
        lambda: hessian_top_eigenvalue(table, cross_entropy, (tokens, y)),
        lambda: nc.ntk_top_eigenvalue(table, tokens),
    ):
        with pytest.raises(ValueError, match="model must not have an Embedding with sparse=True"):
            measured()


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
    for tol in (-1, float("inf")):
        with pytest.raises(ValueError, match=f"tol must be finite and > 0, got {float(tol)}"):
            hessian_top_eigenvalue(model, loss_fn, batch, tol=tol)
    for way in WAYS:
        with pytest.raises(ValueError, match="loss_fn must be finite on the batch, got nan"):
            hessian_top_eigenvalue(model, loss_fn, tuple(t[:0] for t in batch), way)
        with pytest.raises(ValueError, match="loss_fn must depend on the model's output"):
            hessian_top_eigenvalue(model, lambda f, y: f.detach().sum(), batch, way)
    with pytest.raises(ValueError, match="model must have a trainable parameter"):
        hessian_top_eigenvalue(nn.Linear(0, 3, bias=False), loss_fn, batch)
    with pytest.raises(ValueError, match="start must hold 63 finite numbers"):
        hessian_top_eigenvalue(model, loss_fn, batch, start=torch.ones(5))
    with pytest.raises(ValueError, match="model must have a trainable parameter"):
        hessian_top_eigenvalue(model.requires_grad_(False), loss_fn, batch)
