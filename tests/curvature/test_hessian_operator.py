"""Products with the Hessian: equal to the dense matrix, on a snapshot, with errors that are noticed."""

import pytest
import torch
from curvature_nets import labels, make
from oracles_curvature import dense_hessian
from torch import nn
from torch.nn.functional import cross_entropy

from normcore.curvature.hessian_operator import HessianOperator
from normcore.curvature.operator import EigenResult


def operator(kind="batch", way="auto", **options):
    model, x = make(kind)
    batch = x, labels(x)[0]
    return model, batch, HessianOperator(model, cross_entropy, batch, way, **options)


@pytest.mark.parametrize(
    "way, bound", [("double_backward", 1e-13), ("jvp_grad", 1e-13), ("finite_difference", 1e-8)]
)
@pytest.mark.parametrize("kind", ["batch", "conv"])
def test_products_are_the_dense_ones(kind, way, bound):
    model, batch, op = operator(kind, way)
    dense = dense_hessian(model, cross_entropy, batch)
    vectors = torch.randn(op.size, 3, dtype=torch.float64)
    assert float((op @ vectors - dense @ vectors).norm()) < bound * float((dense @ vectors).norm())
    assert float((op @ torch.zeros(op.size)).norm()) == 0.0


@pytest.mark.parametrize("way", ["double_backward", "finite_difference"])
def test_the_model_may_train_on(way):
    model, batch, op = operator(way=way)
    v = torch.ones(op.size, dtype=torch.float64)
    first = op @ v
    with torch.no_grad():
        for p in model.parameters():
            p *= 2.0
    assert torch.allclose(op @ v, first, rtol=1e-9)
    assert not torch.allclose(HessianOperator(model, cross_entropy, batch, way) @ v, first, rtol=1e-2)


class OneDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


def test_auto_goes_to_differences_where_there_is_one_derivative_only():
    class Net(nn.Linear):
        def forward(self, x):
            return OneDerivative.apply(super().forward(x))

    torch.manual_seed(0)
    net, x = Net(4, 3).double(), torch.randn(9, 4).double()
    y = labels(x)[0]
    op = HessianOperator(net, cross_entropy, (x, y))
    v = torch.randn(op.size, dtype=torch.float64)
    twin = nn.Linear(4, 3).double()
    twin.load_state_dict(net.state_dict())
    smooth = lambda f, y: cross_entropy(f.sin(), y)  # noqa: E731
    exact = HessianOperator(twin, smooth, (x, y)) @ v
    assert torch.allclose(op @ v, exact, rtol=1e-5) and op.method == "finite_difference"
    with pytest.raises(RuntimeError, match="once_differentiable"):
        HessianOperator(net, cross_entropy, (x, y), "double_backward") @ v


class WithoutSetup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class WithSetup(WithoutSetup):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)


@pytest.mark.parametrize("function", [WithoutSetup, WithSetup])
def test_a_function_without_forward_derivative_is_named(function):
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3).double(), torch.randn(9, 4).double()
    batch = x, labels(x)[0]
    wrapped = lambda f, y: cross_entropy(function.apply(f), y)  # noqa: E731
    smooth = lambda f, y: cross_entropy(f.sin(), y)  # noqa: E731
    v = torch.randn(15, dtype=torch.float64)
    exact = HessianOperator(net, smooth, batch) @ v
    assert torch.allclose(HessianOperator(net, wrapped, batch) @ v, exact, rtol=1e-12)
    with pytest.raises(
        ValueError, match=r"method must not be 'jvp_grad' .* an autograd.Function that has no"
    ):
        HessianOperator(net, wrapped, batch, "jvp_grad") @ v


def test_differences_measure_their_error():
    _, _, op = operator("layer", "finite_difference")
    v = torch.randn(op.size, dtype=torch.float64)
    op @ v
    assert 0 < op.error < 1e-7

    class Kinked(nn.Linear):  # a kink right at the weights: no difference converges
        def forward(self, x):
            return x @ (self.weight - 0.5).relu().T

    kinked = Kinked(4, 3, bias=False).double()
    nn.init.constant_(kinked.weight, 0.5)
    batch = torch.ones(2, 4).double(), None
    rough = HessianOperator(kinked, lambda f, y: f.sum(), batch, "finite_difference")
    found = rough @ torch.ones(rough.size)
    assert rough.error > 1e-3
    again = HessianOperator(kinked, lambda f, y: f.sum(), batch, "finite_difference")
    again._step, vector = 1e-3, found / found.norm()
    sure = again.recheck(EigenResult(1.0, vector, 0.0, 1, True), 1e-6)  # another step gives another product
    assert sure.residual == again.error > 1e-3 and not sure.converged


@pytest.mark.parametrize("length", [1.0, 3.0])
def test_the_recheck_measures_along_the_vector_whatever_its_length(length):
    """For w^4 at w = 1 a central difference with step h is 12 + 4 h^2; h = 0.1 is compared with 0.25."""
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(net.weight)
    batch = torch.ones(1, 1).double(), None
    op = HessianOperator(net, lambda f, y: f.sum() ** 4, batch, "finite_difference")
    op._step = 0.1
    vector = torch.tensor([length], dtype=torch.float64)
    found = op.recheck(EigenResult(12.0, vector, 0.0, 1, True), 0.02)
    assert found.residual == pytest.approx(0.21 / 12.04, rel=1e-9) and found.converged


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature():
    op = HessianOperator(nn.Linear(3, 2), lambda f, y: f.sum(), (torch.ones(4, 3), None))
    assert float((op @ torch.ones(op.size)).norm()) == 0.0
