"""A stack is its nets, one by one, in both parametrizations, and its kernels are J J^T."""

import math

import pytest
import torch
from torch.nn.functional import batch_norm, cross_entropy, layer_norm, leaky_relu

from normcore.lab import (
    Stack,
    half_mse,
    load_dataset,
    softmax_loss,
    stack_accuracy_on,
    stack_loss_on,
    stack_norms,
    stack_predictions,
    stack_weights,
    top_eigenpair,
    wide_curvature,
    wide_kernel,
)

DATA = load_dataset("digits", dtype=torch.float64)
X, Y = DATA.x_test[:40], DATA.y_test[:40]
G = torch.Generator().manual_seed(0)
FEW = torch.randn(6, 5, generator=G, dtype=torch.float64)
F64 = {"dtype": torch.float64}
NTK = {"parametrization": "ntk", **F64}
PHI = {
    "relu": torch.relu,
    "leaky_relu": lambda h: leaky_relu(h, 0.2),
    "tanh": torch.tanh,
    "identity": lambda h: h,
}
GAIN = {"relu": 2**0.5, "leaky_relu": (2 / 1.04) ** 0.5, "tanh": 1.0, "identity": 1.0}


def normalized(h, norm):
    if norm == "layer":
        return layer_norm(h, h.shape[1:], eps=1e-30)
    return batch_norm(h, None, None, training=True, eps=1e-30) if norm == "batch" else h


def one_net(stack, r, x, activation="leaky_relu"):
    """Run r of the standard parametrization written out with torch's own functions."""
    h = x.flatten(1)
    for w in stack.weights:
        h = PHI[activation](normalized(h @ w[r], stack.norm))
    return h @ stack.head[r]


def one_ntk(weights, x, activation, norm="none"):
    """One net of NTK parametrization written out."""
    h = x
    for w in weights[:-1]:
        h = PHI[activation](normalized(GAIN[activation] * h @ w / math.sqrt(w.shape[0]), norm))
    return h @ weights[-1] / math.sqrt(weights[-1].shape[0])


def dense_kernel(net, weights, x):
    """J J^T / m from torch's own Jacobian of all outputs in all weights."""
    jacobians = torch.autograd.functional.jacobian(lambda *w: net(w, x), tuple(weights))
    flat = torch.cat([j.flatten(2).flatten(0, 1) for j in jacobians], dim=1)
    return flat @ flat.T / x.shape[0]


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_each_run_is_a_net_of_its_own(norm):
    stack = Stack((64, 16, 12, 10), seeds=[3, 7], norm=norm, **F64)
    for r in range(2):
        assert torch.allclose(stack(X)[r], one_net(stack, r, X), rtol=1e-11, atol=1e-12)
    own = torch.stack([X, DATA.x_test[100:140]])
    assert torch.allclose(stack(own)[1], one_net(stack, 1, own[1]), rtol=1e-11, atol=1e-12)


def test_standard_weights_have_variance_one_over_fan_in_and_ntk_weights_one():
    for options, scale in (({}, 1 / 64), ({"parametrization": "ntk"}, 1.0)):
        w = Stack((64, 300, 10), seeds=[0], **options).weights[0]
        assert w.detach().var().item() == pytest.approx(scale, rel=0.05)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_scale_invariant_and_not_without_a_norm(norm):
    stack = Stack((64, 16, 10), seeds=range(2), norm=norm, **F64)
    before = stack(X)
    change = (stack.scale_(10.0)(X) - before).norm() / before.norm()
    assert change < 1e-12
    bare = Stack((64, 16, 10), seeds=range(2), norm="none", **F64)  # control
    assert (bare(X) - bare.scale_(10.0)(X)).norm() > bare(X).norm() / 2


def test_a_run_depends_on_its_seed_alone():
    a, b = Stack((64, 16, 10), seeds=[1, 2, 3], **F64), Stack((64, 16, 10), seeds=[3], **F64)
    assert torch.equal(stack_weights(a)[2], stack_weights(b)[0]) and torch.equal(a.head[2], b.head[0])
    assert not torch.equal(a.head[0], a.head[1])
    shared = Stack((64, 16, 10), seeds=[1, 2], shared_head=True, head_scale=5.0, **F64)
    assert torch.equal(shared.head[0], shared.head[1]) and torch.equal(shared.head[0], 5 * a.head[0])


def test_own_inputs_and_common_ones_are_never_guessed():
    stack = Stack((64, 16, 10), seeds=range(3), **F64)
    common, images = X[:3], X[:3].view(3, 1, 8, 8)
    with pytest.raises(
        ValueError, match=r"x must not fit two readings, got shape \(3, 1, 8, 8\): 3 examples"
    ):
        stack(images)
    assert torch.equal(stack(images, own=False), stack(common.flatten(1)))
    each = torch.stack([stack(images, own=False)[r, r] for r in range(3)])
    assert torch.allclose(stack(images, own=True)[:, 0], each, rtol=1e-13, atol=1e-13)
    alone = stack.take([1])  # the same rows either way
    assert torch.equal(alone(images[:1]), alone(images[:1], own=False))
    assert stack(X[:4]).shape == (3, 4, 10)


@pytest.mark.parametrize(
    ("shape", "own", "message"),
    [
        (
            (5, 63),
            None,
            r"x must be \(B, ...\), or \(3, B, ...\) of each run, with 64 numbers an example, got",
        ),
        ((64,), None, r"x must be .* got shape \(64,\)"),
        ((2, 5, 64), None, r"x must be .* got shape \(2, 5, 64\)"),
        (
            (5, 64),
            True,
            r"x must be \(3, B, ...\) of each run with 64 numbers an example, got shape \(5, 64\)",
        ),
        ((3, 5, 64), False, r"x must be .* got shape \(3, 5, 64\)"),
    ],
)
def test_wrong_shapes_are_refused(shape, own, message):
    with pytest.raises(ValueError, match=message):
        Stack((64, 16, 10), seeds=range(3))(torch.zeros(shape), own)


def test_take_copies():
    stack = Stack((64, 16, 10), seeds=range(3), **F64)
    part = stack.take([2, 2, 0])
    assert torch.equal(part(X)[1], stack(X)[2]) and part.runs == 3
    part.scale_(torch.tensor([1.0, 2.0, 3.0]))
    sizes = stack_norms(part) / stack_norms(stack)[[2, 2, 0]]
    assert torch.allclose(sizes, torch.tensor([1.0, 2.0, 3.0], **F64), rtol=1e-14)
    assert isinstance(part.weights[0], torch.nn.Parameter)
    wide = Stack((5, 16, 2), seeds=range(3), **NTK)
    assert torch.equal(wide.take([1])(FEW)[0], wide(FEW)[1]) and wide.head is None


def test_with_weights_is_the_inverse_of_stack_weights():
    stack, other = (Stack((64, 16, 12, 10), seeds=[a, a + 1], **F64) for a in (0, 5))
    moved = stack.with_weights(stack_weights(other))
    assert torch.equal(stack_weights(moved), stack_weights(other))
    assert torch.equal(moved.head, stack.head) and not torch.equal(stack_weights(stack), stack_weights(other))
    with pytest.raises(ValueError, match=r"vectors must have shape \(2, 1216\), got \(2, 3\)"):
        stack.with_weights(torch.zeros(2, 3))


def test_probes_count_run_by_run():
    stack = Stack((64, 16, 10), seeds=range(2), **F64)
    target = torch.randn(40, 10, generator=G, **F64)
    for r in range(2):
        output = one_net(stack, r, X)
        loss = cross_entropy(output, Y).item()
        assert stack_loss_on(X, Y)(stack)[r].item() == pytest.approx(loss, rel=1e-12)
        squared = (output - target).pow(2).sum().item() / 80
        assert stack_loss_on(X, target)(stack)[r].item() == pytest.approx(squared, rel=1e-12)
        assert torch.equal(stack_predictions(stack, X)[r], output.argmax(dim=1))
        right = (output.argmax(dim=1) == Y).double().mean()
        assert stack_accuracy_on(X, Y)(stack)[r] == right


def test_losses_against_loops():
    output, soft = torch.randn(2, 2, 12, 3, generator=G, **F64)
    soft, labels = soft.softmax(dim=2), torch.arange(24).view(2, 12) % 3
    hot = torch.eye(3, **F64)[labels]
    for r in range(2):
        total = sum(float((output[r, a, k] - soft[0, a, k]) ** 2) for a in range(12) for k in range(3))
        assert half_mse(output, soft[0])[r].item() == pytest.approx(total / 24, rel=1e-12)
        own = sum(float((output[r, a, k] - soft[r, a, k]) ** 2) for a in range(12) for k in range(3))
        assert half_mse(output, soft)[r].item() == pytest.approx(own / 24, rel=1e-12)
        expected = cross_entropy(output[r], labels[r]).item()
        for targets in (labels, hot):
            assert softmax_loss(output, targets)[r].item() == pytest.approx(expected, rel=1e-12)
        by_hand = -(soft[0] * output[r].log_softmax(dim=1)).sum(dim=1).mean().item()
        assert softmax_loss(output, soft[0])[r].item() == pytest.approx(by_hand, rel=1e-12)
    with pytest.raises(ValueError, match=r"y must have shape \(12, 3\) or \(2, 12, 3\), got \(12, 1\)"):
        half_mse(output, soft[0, :, :1])  # would broadcast to another loss
    with pytest.raises(ValueError, match=r"y must have shape \(12,\) or \(2, 12\), got \(12, 3\)"):
        softmax_loss(output, hot[0].long())


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "identity"])
@pytest.mark.parametrize(
    ("sizes", "norm"), [((5, 16, 1), "none"), ((5, 12, 10, 3), "none"), ((5, 8, 2), "layer")]
)
def test_ntk_outputs_and_kernels(activation, sizes, norm):
    nets = Stack(sizes, seeds=[0, 4], activation=activation, norm=norm, **NTK)
    for r in range(2):
        weights = [w.detach()[r] for w in nets.weights]
        assert torch.allclose(nets(FEW)[r], one_ntk(weights, FEW, activation, norm), rtol=1e-11)
        dense = dense_kernel(lambda w, x: one_ntk(w, x, activation, norm), weights, FEW)
        assert torch.allclose(wide_kernel(nets, FEW)[r], dense, rtol=1e-9, atol=1e-13)
        top = torch.linalg.eigvalsh(dense)[-1]
        assert wide_curvature(nets, FEW, iterations=400)[r].item() == pytest.approx(top.item(), rel=1e-9)
    assert not torch.allclose(wide_kernel(nets, FEW)[0], wide_kernel(nets, FEW)[1])


def test_the_kernel_of_the_standard_parametrization_is_that_of_the_trained_weights():
    stack = Stack((5, 8, 6, 2), seeds=[0, 1], activation="tanh", **F64)

    def net(weights, x):
        h = x
        for w in weights:
            h = torch.tanh(normalized(h @ w, "layer"))
        return h @ stack.head[1]

    dense = dense_kernel(net, [w.detach()[1] for w in stack.weights], FEW)
    assert torch.allclose(wide_kernel(stack, FEW)[1], dense, rtol=1e-9, atol=1e-13)
    with pytest.raises(ValueError, match="nets must not have norm 'batch'"):
        wide_kernel(Stack((5, 8, 2), seeds=[0], norm="batch"), FEW)


def test_the_size_of_the_output_does_not_grow_with_the_width():
    for width in (64, 4096):
        nets = Stack((5, width, 1), seeds=range(40), **NTK)
        assert 0.3 < nets(FEW).pow(2).mean().item() / (FEW.pow(2).sum(dim=1).mean().item() / 5) < 3


def test_an_antisymmetric_net_starts_at_zero_with_the_kernel_of_an_ordinary_one():
    nets = Stack((5, 512, 1), seeds=range(8), antisymmetric=True, **NTK)
    assert nets(FEW).abs().max() < 1e-12
    plain = Stack((5, 512, 1), seeds=range(8), **NTK)
    assert plain(FEW).abs().max() > 0.5  # control
    ratio = wide_curvature(nets, FEW).mean() / wide_curvature(plain, FEW).mean()
    assert 0.9 < ratio.item() < 1.1


def test_eigenpairs_of_known_matrices():
    q = torch.linalg.qr(torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(1), **F64))[0]
    values = torch.tensor([5.0, 2.0, 1.0, 0.5, 0.1, 0.0], **F64)
    value, vector = top_eigenpair(q @ torch.diag(values) @ q.transpose(1, 2), 60)
    assert torch.allclose(value, torch.full((3,), 5.0, **F64), rtol=1e-12)
    assert torch.allclose((vector * q[:, :, 0]).sum(dim=1).abs(), torch.ones(3, **F64), rtol=1e-12)
    rough, _ = top_eigenpair(q @ torch.diag(values) @ q.transpose(1, 2), 2)  # control: too few
    assert (rough < 5 - 1e-4).all()
    value, vector = top_eigenpair(torch.zeros(1, 3, 3, **F64), 60)
    assert value.item() == 0.0 and not vector.isnan().any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (64, 10)}, r"sizes must be \(inputs, hidden, ..., outputs\), got \(64, 10\)"),
        ({"norm": "group"}, "norm must be one of .*, got 'group'"),
        ({"activation": "gelu"}, "activation must be one of .*, got 'gelu'"),
        ({"parametrization": "mup"}, "parametrization must be one of .*, got 'mup'"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64, got torch.float16"),
        ({"seeds": []}, "seeds must name at least one run"),
        ({"sizes": (5, 15, 1), "antisymmetric": True}, "even last width to be antisymmetric, got 15"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        Stack(**{"sizes": (64, 16, 10), "seeds": [0], **options})
