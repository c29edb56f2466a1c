"""Training a stack is training each net with torch's SGD."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from normcore.lab import load_dataset
from normcore.lab.stacks.descend import train_stack
from normcore.lab.stacks.stack import Stack, stack_norms, stack_weights

DATA = load_dataset("digits", dtype=torch.float64)
F64 = {"dtype": torch.float64}


def alone(stack, r, seed, lr, weight_decay, steps, batch_size):
    """Run r with stock SGD and batches from its own generator; losses, squared gradients, weights."""
    net = stack.take([r])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(seed)
    losses, squares = [], []
    for t in range(steps):
        index = torch.randint(len(DATA.x_train), (batch_size,), generator=generator)
        optimizer.param_groups[0].update(lr=lr[t], weight_decay=weight_decay[t])
        optimizer.zero_grad()
        loss = cross_entropy(net(DATA.x_train[index].flatten(1))[0], DATA.y_train[index])
        loss.backward()
        losses.append(loss.item())
        squares.append(sum(p.grad.pow(2).sum().item() for p in net.parameters()))
        optimizer.step()
    return losses, squares, stack_weights(net)[0]


def test_each_run_is_stock_sgd():
    steps, rng = 30, np.random.default_rng(0)
    lr, decay = rng.uniform(0.05, 0.5, (3, steps)), rng.uniform(0, 0.1, (3, steps))
    stack = Stack((64, 16, 10), seeds=range(3), **F64)
    expected = [alone(stack, r, 10 + r, lr[r], decay[r], steps, 16) for r in range(3)]
    probes = {"norm": stack_norms}
    history = train_stack(
        stack, DATA, lr=lr, weight_decay=decay, steps=steps, batch_size=16, seeds=[10, 11, 12],
        probes=probes, every=7,
    )  # fmt: skip
    for r, (losses, squares, weights) in enumerate(expected):
        np.testing.assert_allclose(history.loss[:, r], losses, rtol=1e-10)
        np.testing.assert_allclose(history["grad_sq_norm"][:, r], squares, rtol=1e-9)
        assert torch.allclose(stack_weights(stack)[r], weights, rtol=1e-9, atol=1e-12)
    assert history.step.tolist() == [0, 7, 14, 21, 28, 30]
    assert history["norm"].shape == (6, 3)
    assert history["norm"][-1] == pytest.approx(stack_norms(stack).numpy(), rel=1e-14)


def test_rates_by_run_by_step_and_full_batch():
    one, two = (Stack((64, 16, 10), seeds=range(2), **F64) for _ in range(2))
    data = (DATA.x_train[:50], DATA.y_train[:50])
    train_stack(one, data, lr=[[0.1], [0.2]], weight_decay=0.01, steps=8)
    train_stack(two, data, lr=np.outer([0.1, 0.2], np.ones(8)), weight_decay=np.full(8, 0.01), steps=8)
    assert torch.equal(stack_weights(one), stack_weights(two))
    assert not torch.allclose(stack_weights(one)[0], stack_weights(one)[1])


def test_equal_seeds_see_equal_batches():
    stack = Stack((64, 16, 10), seeds=[5, 5, 5], **F64)
    history = train_stack(stack, DATA, lr=0.1, steps=5, batch_size=8, seeds=[1, 1, 2])
    assert np.array_equal(history.loss[:, 0], history.loss[:, 1])
    assert not np.array_equal(history.loss[:, 0], history.loss[:, 2])


def test_bad_input():
    stack, options = Stack((64, 16, 10), seeds=range(2)), {"steps": 5, "batch_size": 8}
    data = load_dataset("digits")
    with pytest.raises(
        ValueError, match=r"lr must be a number, \(5,\), \(2, 1\) or \(2, 5\), got shape \(3,\)"
    ):
        train_stack(stack, data, lr=[0.1] * 3, **options)
    with pytest.raises(ValueError, match="weight_decay must be >= 0 and finite, got -1.0"):
        train_stack(stack, data, lr=0.1, weight_decay=-1.0, **options)
    with pytest.raises(ValueError, match="seeds must hold one for each of 2 runs, got 1"):
        train_stack(stack, data, lr=0.1, seeds=[0], **options)
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        train_stack(stack, data, lr=0.1, every=0, **options)
    bare = Stack((64, 16, 10), seeds=range(2), norm="none")
    with pytest.raises(FloatingPointError, match="a run diverged"):
        train_stack(bare, data, lr=1e38, **options)
