"""The top NTK eigenvalue by every method against the dense kernel, on every layer; the model stays as it was."""

import pytest
import torch
from curvature_nets import MAKE, make, same_state, state_of
from oracles_curvature import dense_ntk
from torch import nn
from torch.utils.checkpoint import checkpoint

from normcore import lab
from normcore.curvature.ntk import METHODS, NTKOperator, ntk_top_eigenvalue


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("kind", list(MAKE))
def test_equals_the_dense_eigenvalue(kind, mode):
    model, x = make(kind)
    model.train(mode)
    couples = mode and kind in ("batch", "conv")
    before = state_of(model)
    dense = dense_ntk(model, x)
    exact = float(torch.linalg.eigvalsh(dense)[-1])
    for method in METHODS:
        if couples and method == "structured":
            with pytest.raises(
                ValueError, match=r"method must not be 'structured' for a model with a BatchNorm"
            ):
                ntk_top_eigenvalue(model, x, method)
            continue
        result = ntk_top_eigenvalue(model, x, method)
        assert result.converged and abs(result.value / exact - 1) < 1e-6 and result.residual < 1e-6
        vector = result.vector.flatten()
        assert (
            result.vector.shape == (len(x), 3)
            and float((dense @ vector - exact * vector).norm()) < 1e-5 * exact
        )
    chosen = ntk_top_eigenvalue(model, x).method
    assert chosen == ("structured" if not couples else "dense" if 3 * len(x) <= 32 else "lanczos")
    assert same_state(before, state_of(model))


@pytest.mark.parametrize("kind", ["layer", "attention", "conv"])
def test_every_product_is_the_dense_one(kind):
    model, x = make(kind)
    model.eval()
    dense = dense_ntk(model, x)
    vectors = torch.randn(len(dense), 4, dtype=torch.float64)
    for method in ("structured", "lanczos", "dense"):
        operator = NTKOperator(model, x, method)
        assert float((operator @ vectors - dense @ vectors).norm()) < 1e-11 * float((dense @ vectors).norm())
        assert operator.matvecs == 4


def test_chunks_give_the_same():
    model, x = make("attention")
    whole = ntk_top_eigenvalue(model, x)
    parts = ntk_top_eigenvalue(model, x, chunk_size=3)
    assert parts.method == "lanczos" and abs(parts.value / whole.value - 1) < 1e-7
    model, x = make("batch")
    with pytest.raises(
        ValueError, match="chunk_size must be None while a BatchNorm uses batch statistics, got 3"
    ):
        ntk_top_eigenvalue(model, x, chunk_size=3)
    with pytest.raises(ValueError, match="chunk_size must be None unless method is 'lanczos', got 3"):
        ntk_top_eigenvalue(model, x, "dense", chunk_size=3)

    class Coupled(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    with pytest.raises(ValueError, match="samples must not interact when chunk_size=3"):
        ntk_top_eigenvalue(Coupled(4, 2).double(), x, chunk_size=3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off(mode):
    model, x = make("layer")
    exact = ntk_top_eigenvalue(model, x).value
    with mode():
        again = x.clone()
        for method in METHODS:
            assert abs(ntk_top_eigenvalue(model, again, method).value / exact - 1) < 1e-9
        assert abs(ntk_top_eigenvalue(model, again, chunk_size=4).value / exact - 1) < 1e-6


@pytest.mark.parametrize("options", [{"method": m} for m in METHODS] + [{"chunk_size": 4}])
def test_activation_checkpointing(options):
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return self[2](checkpoint(self[1], self[0](x), use_reentrant=False))

    torch.manual_seed(0)
    middle = nn.Sequential(nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh())
    layers = nn.Linear(4, 5), middle, nn.Linear(5, 3)
    model, x = Checkpointed(*layers).double(), torch.randn(10, 4).double()
    dense = dense_ntk(nn.Sequential(*layers), x)
    operator, vector = NTKOperator(model, x, **options), torch.randn(len(dense)).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1  # the model may train on
    assert torch.allclose(operator @ vector, dense @ vector, rtol=1e-9)


def test_a_regression_without_output_axis_and_an_image_of_outputs():
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0)).double()
    image = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 1, 3)).double()
    for model, x in ((flat, torch.randn(7, 4).double()), (image, torch.randn(3, 1, 5, 5).double())):
        exact = float(torch.linalg.eigvalsh(dense_ntk(model, x))[-1])
        for method in METHODS:
            result = ntk_top_eigenvalue(model, x, method)
            assert abs(result.value / exact - 1) < 1e-6 and result.vector.shape == model(x).shape


def test_recurrent_tied_and_attention_modules_fall_back():
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(torch.tanh(self.embed(x).mean(1)))

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    class Multihead(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0].mean(1))

    tokens = torch.randint(5, (12, 3))
    for model, x in (
        (Tied(), tokens),
        (Recurrent(), torch.randn(20, 3, 3).double()),
        (Multihead(), torch.randn(20, 3, 4).double()),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), torch.randn(20, 4).double()),
    ):
        model.double()
        exact = float(torch.linalg.eigvalsh(dense_ntk(model, x))[-1])
        operator = NTKOperator(model, x)
        result = ntk_top_eigenvalue(model, x)
        assert operator.method == "lanczos" and operator.why
        assert result.converged and abs(result.value / exact - 1) < 1e-6, type(model)


def test_it_is_the_hessian_where_the_residuals_vanish():
    from normcore.curvature.hessian import hessian_top_eigenvalue

    model, x = make("layer")
    with torch.no_grad():
        target = model(x)
    half = lambda f, y: ((f - y) ** 2).sum() / (2 * len(y))  # noqa: E731
    kernel = ntk_top_eigenvalue(model, x).value
    assert abs(hessian_top_eigenvalue(model, half, (x, target)).value / kernel - 1) < 1e-9
    mean = hessian_top_eigenvalue(model, nn.functional.mse_loss, (x, target)).value
    assert abs(mean / (kernel * 2 / 3) - 1) < 1e-9  # nn.MSELoss carries 2/K
    away = hessian_top_eigenvalue(model, half, (x, target + 1)).value
    assert abs(away / kernel - 1) > 1e-3


def test_float32_and_frozen_parameters():
    model, x = make("conv")
    model.eval()
    model.first.requires_grad_(False)
    model.norm.weight.requires_grad_(False)
    model.last.weight.requires_grad_(False)
    exact = float(torch.linalg.eigvalsh(dense_ntk(model, x))[-1])
    everything, _ = make("conv")
    assert abs(ntk_top_eigenvalue(everything.eval(), x).value / exact - 1) > 1e-3
    for method in ("structured", "lanczos"):
        assert abs(ntk_top_eigenvalue(model, x, method).value / exact - 1) < 1e-6
    model.float()
    for method in ("structured", "lanczos"):
        result = ntk_top_eigenvalue(model, x.float(), method)
        assert result.converged and abs(result.value / exact - 1) < 1e-5


def test_a_part_that_is_derivable_once_only():
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return g * ctx.saved_tensors[0].cos()

    class Layer(nn.Linear):
        def forward(self, x):
            return Sine.apply(super().forward(x))

    torch.manual_seed(0)
    x = torch.randn(20, 4).double()
    covered = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    covered[0].register_forward_hook(lambda m, a, out: Sine.apply(out))
    exact = float(torch.linalg.eigvalsh(dense_ntk(covered, x))[-1])
    result = ntk_top_eigenvalue(covered, x)
    assert result.method == "structured" and abs(result.value / exact - 1) < 1e-6
    with pytest.raises(
        ValueError, match="method must be 'structured' or 'dense' for a model with a once_diff"
    ):
        ntk_top_eigenvalue(Layer(4, 3).double(), x)
    assert ntk_top_eigenvalue(Layer(4, 3).double(), x, "dense").converged


def test_bad_input():
    class First(nn.Linear):
        def forward(self, pair):
            return super().forward(pair[0])

    class Total(nn.Linear):
        def forward(self, x):
            return super().forward(x).sum()

    class Winner(nn.Linear):
        def forward(self, x):
            return super().forward(x).argmax(1)

    model, x = make("layer")
    with pytest.raises(ValueError, match=r"method must be one of .* got 'power'"):
        ntk_top_eigenvalue(model, x, "power")
    with pytest.raises(ValueError, match="model must give finite outputs on x, got NaN or infinity"):
        ntk_top_eigenvalue(model, x * float("nan"))
    with pytest.raises(TypeError, match=r"model must return one real tensor \(m, ...\), got tuple"):
        ntk_top_eigenvalue(nn.LSTM(4, 2).double(), x[None])
    for number in (Total(4, 3).double(), Winner(4, 3).double()):
        with pytest.raises(TypeError, match=r"model must return one real tensor \(m, ...\), got Tensor"):
            ntk_top_eigenvalue(number, x)
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got function"):
        ntk_top_eigenvalue(lambda x: x, x)
    with pytest.raises(ValueError, match="max_matvecs must be >= 1, got 0"):
        ntk_top_eigenvalue(model, x, max_matvecs=0)
    with pytest.raises(ValueError, match="tol must be finite and > 0, got inf"):
        ntk_top_eigenvalue(model, x, tol=float("inf"))
    with pytest.raises(ValueError, match=r"x must hold at least one sample, got an output of shape \(0, 3\)"):
        ntk_top_eigenvalue(model, x[:0])
    with pytest.raises(TypeError, match="x must be one tensor, a row a sample, when chunk_size is given"):
        ntk_top_eigenvalue(First(4, 3).double(), (x, x), chunk_size=2)


@pytest.mark.parametrize("head", ["frozen", "trained"])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_every_net_of_the_laboratory_takes_the_fast_way(norm, head):
    images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    common = {"norm": norm, "head": head, "classes": 2}
    nets = [lab.mlp((64, 16, 2), norm=norm, head=head), lab.cnn((4, 8), **common), lab.preresnet(8, **common)]
    for net in nets:
        operator = NTKOperator(net, images)
        assert (operator.method, operator.why) == ("structured", "")
