"""A stack is its nets, one by one."""

import pytest
import torch
from torch.nn.functional import batch_norm, cross_entropy, layer_norm, leaky_relu

from normcore.lab import load_dataset
from normcore.lab.stacks.stack import (
    Stack,
    stack_accuracy_on,
    stack_loss_on,
    stack_norms,
    stack_predictions,
    stack_weights,
)

DATA = load_dataset("digits", dtype=torch.float64)
X, Y = DATA.x_test[:40], DATA.y_test[:40]
F64 = {"dtype": torch.float64}


def one_net(stack, r, x):
    """Run r written out with torch's own functions."""
    h = x.flatten(1)
    for w in stack.weights:
        h = h @ w[r]
        if stack.norm == "layer":
            h = layer_norm(h, h.shape[1:], eps=1e-30)
        if stack.norm == "batch":
            h = batch_norm(h, None, None, training=True, eps=1e-30)
        h = leaky_relu(h, 0.2)
    return h @ stack.head[r]


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_each_run_is_a_net_of_its_own(norm):
    stack = Stack((64, 16, 12, 10), seeds=[3, 7], norm=norm, **F64)
    for r in range(2):
        expected = one_net(stack, r, X)
        assert torch.allclose(stack(X)[r], expected, rtol=1e-11, atol=1e-12)
    own = torch.stack([X, DATA.x_test[100:140]])
    assert torch.allclose(stack(own)[1], one_net(stack, 1, own[1]), rtol=1e-11, atol=1e-12)


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


def test_take_copies():
    stack = Stack((64, 16, 10), seeds=range(3), **F64)
    part = stack.take([2, 2, 0])
    assert torch.equal(part(X)[1], stack(X)[2]) and part.runs == 3
    part.scale_(torch.tensor([1.0, 2.0, 3.0]))
    sizes = stack_norms(part) / stack_norms(stack)[[2, 2, 0]]
    assert torch.allclose(sizes, torch.tensor([1.0, 2.0, 3.0], **F64), rtol=1e-14)
    assert isinstance(part.weights[0], torch.nn.Parameter)


def test_with_weights_is_the_inverse_of_stack_weights():
    stack, other = (Stack((64, 16, 12, 10), seeds=[a, a + 1], **F64) for a in (0, 5))
    moved = stack.with_weights(stack_weights(other))
    assert torch.equal(stack_weights(moved), stack_weights(other))
    assert torch.equal(moved.head, stack.head) and not torch.equal(stack_weights(stack), stack_weights(other))
    with pytest.raises(ValueError, match=r"vectors must have shape \(2, 1216\), got \(2, 3\)"):
        stack.with_weights(torch.zeros(2, 3))


def test_probes_count_run_by_run():
    stack = Stack((64, 16, 10), seeds=range(2), **F64)
    for r in range(2):
        output = one_net(stack, r, X)
        assert stack_loss_on(X, Y)(stack)[r].item() == pytest.approx(
            cross_entropy(output, Y).item(), rel=1e-12
        )
        assert torch.equal(stack_predictions(stack, X)[r], output.argmax(dim=1))
        right = (output.argmax(dim=1) == Y).double().mean()
        assert stack_accuracy_on(X, Y)(stack)[r] == right


def test_bad_input():
    with pytest.raises(ValueError, match=r"sizes must be \(inputs, hidden, ..., classes\), got \(64, 10\)"):
        Stack((64, 10), seeds=[0])
    with pytest.raises(ValueError, match="norm must be 'layer', 'batch' or 'none', got 'group'"):
        Stack((64, 16, 10), seeds=[0], norm="group")
    with pytest.raises(ValueError, match="seeds must name at least one run"):
        Stack((64, 16, 10), seeds=[])
