"""Descent of many nets is descent of each by torch's SGD; what diverges is recorded and disturbs nobody."""

import numpy as np
import pytest
import torch

from normcore.lab import (
    Stack,
    descend,
    half_mse,
    load_dataset,
    softmax_loss,
    stack_loss_on,
    stack_norms,
    stack_weights,
    wide_curvature,
)

DATA = load_dataset("digits", dtype=torch.float64)
G = torch.Generator().manual_seed(0)
X = torch.randn(12, 5, generator=G, dtype=torch.float64)
Y = torch.randn(12, 2, generator=G, dtype=torch.float64)
F64 = {"dtype": torch.float64}
NTK = {"parametrization": "ntk", **F64}


def alone(stack, r, data, lr, weight_decay, indices, loss_fn):
    """Run r with stock SGD on given batches: losses, squared gradients, weights at the end."""
    net = stack.take([r])
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    losses, squares = [], []
    for t, index in enumerate(indices):
        optimizer.param_groups[0].update(lr=float(lr[t]), weight_decay=float(weight_decay[t]))
        optimizer.zero_grad()
        loss = loss_fn(net(data[0][index].flatten(1)), data[1][index]).sum()
        loss.backward()
        losses.append(loss.item())
        squares.append(sum(p.grad.pow(2).sum().item() for p in net.parameters()))
        optimizer.step()
    return losses, squares, stack_weights(net)[0]


def drawn(seed, steps, batch_size):
    """The batches of a seed, drawn with replacement, and the one after the last step."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(len(DATA.x_train), (batch_size,), generator=generator) for _ in range(steps + 1)]


@pytest.mark.parametrize("batch_size", [1, 16])
def test_each_run_is_stock_sgd(batch_size):
    steps, rng = 30, np.random.default_rng(0)
    lr, decay = rng.uniform(0.05, 0.5, (3, steps)), rng.uniform(0, 0.1, (3, steps))
    stack = Stack((64, 16, 10), seeds=range(3), **F64)
    data = DATA.x_train, DATA.y_train
    expected = [
        alone(stack, r, data, lr[r], decay[r], drawn(10 + r, steps, batch_size)[:-1], softmax_loss)
        for r in range(3)
    ]
    run = descend(
        stack, DATA, lr=lr, weight_decay=decay, steps=steps, batch_size=batch_size, seeds=[10, 11, 12],
        probes={"norm": stack_norms}, every=7,
    )  # fmt: skip
    for r, (losses, squares, weights) in enumerate(expected):
        np.testing.assert_allclose(run.loss[:-1, r], losses, rtol=1e-9)
        np.testing.assert_allclose(run["grad_sq"][:, r], squares, rtol=1e-8)
        assert torch.allclose(stack_weights(stack)[r], weights, rtol=1e-9, atol=1e-11)
        last = drawn(10 + r, steps, batch_size)[-1]
        after = softmax_loss(stack.take([r])(DATA.x_train[last].flatten(1)), DATA.y_train[last])
        assert run.loss[-1, r] == pytest.approx(after.item(), rel=1e-9)
    assert run.step.tolist() == [0, 7, 14, 21, 28, 30] and run["norm"].shape == (6, 3)
    assert run["norm"][-1] == pytest.approx(stack_norms(stack).numpy(), rel=1e-14)
    assert run.diverged_at == [None, None, None]


def test_full_batch_on_targets_with_a_rate_for_each_run():
    start = Stack((5, 16, 2), seeds=[0, 1, 1], activation="tanh", **NTK)
    nets, rates = start.take(range(3)), [0.1, 0.1, 0.3]
    run = descend(nets, (X, Y), lr=rates, steps=20, probes={"output": lambda n: n(X)}, every=8)
    for r, rate in enumerate(rates):
        everything = [slice(None)] * 21
        losses, _, _ = alone(start, r, (X, Y), [rate] * 21, [0.0] * 21, everything, half_mse)
        np.testing.assert_allclose(run.loss[:, r], losses, rtol=1e-10)
    assert run.step.tolist() == [0, 8, 16, 20] and run["output"].shape == (4, 3, 12, 2)


def test_rates_of_runs_of_steps_and_of_both():
    def end(lr, weight_decay):
        stack = Stack((64, 16, 10), seeds=range(2), **F64)
        descend(stack, (DATA.x_train[:50], DATA.y_train[:50]), lr=lr, weight_decay=weight_decay, steps=8)
        return stack_weights(stack)

    falling = np.linspace(0.2, 0.1, 8)
    assert torch.equal(end([0.1, 0.2], 0.01), end(np.outer([0.1, 0.2], np.ones(8)), np.full((2, 8), 0.01)))
    assert torch.equal(end([[0.1], [0.2]], 0.01), end([0.1, 0.2], 0.01))
    assert torch.equal(end(falling[None], 0.01), end([falling, falling], 0.01))
    assert not torch.allclose(end(falling[None], 0.01), end(falling[None, ::-1], 0.01))


def test_equal_seeds_see_equal_batches():
    def losses(**options):
        stack = Stack((64, 16, 10), seeds=[5, 5, 5], **F64)
        return descend(stack, DATA, lr=0.1, steps=5, batch_size=8, **options).loss.T

    a, b, c = losses(seeds=[1, 1, 2])
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    shared = losses(seeds=1)
    assert np.array_equal(shared[0], shared[2]) and shared[0] == pytest.approx(a, rel=1e-12)
    default = losses()
    assert default[1] == pytest.approx(a, rel=1e-12) and default[0] != pytest.approx(a, rel=1e-3)


@pytest.mark.parametrize("seeds", [3, [3, 3]])
def test_without_replacement_an_epoch_sees_every_example_once(seeds):
    seen = []

    def loss_fn(output, y):
        seen.append(y.expand(2, -1, -1)[0, :, 0].tolist())
        return half_mse(output, y)

    y = torch.arange(12.0, **F64)[:, None]
    nets = Stack((5, 16, 1), seeds=[0, 1], **NTK)
    options = {"batch_size": 5, "replacement": False, "seeds": seeds, "loss_fn": loss_fn}
    descend(nets, (X, y), lr=1e-3, steps=3, **options)
    assert [len(set(one + two)) for one, two in zip(seen[::2], seen[1::2], strict=True)] == [10, 10]
    assert seen[0] != seen[2]
    seen.clear()
    descend(nets, (X, y), lr=1e-3, steps=200, **{**options, "replacement": True})
    assert min(len(set(batch)) for batch in seen) < 5  # control


def test_a_diverging_run_stops_where_it_is_and_disturbs_nobody():
    start = Stack((5, 16, 2), seeds=[0, 0, 1], activation="identity", **NTK)
    nets, probes = start.take(range(3)), {"weights": stack_weights, "loss": stack_loss_on(X, Y)}
    run = descend(nets, (X, Y), lr=[0.1, 1e3, 0.1], weight_decay=1e-4, steps=30, probes=probes, every=2)
    stop = run.diverged_at[1]
    assert 0 < stop < 28 and run.diverged_at == [None, stop, None]
    for record, steps in (
        (run.loss, np.arange(31)),
        (run["grad_sq"], np.arange(30)),
        (run["weights"], run.step),
    ):
        assert np.isnan(record[steps >= stop, 1]).all() and np.isfinite(record[steps < stop, 1]).all()
        assert np.isfinite(record[:, [0, 2]]).all()
    halted = start.take(range(3))
    descend(halted, (X, Y), lr=[0.1, 1e3, 0.1], weight_decay=1e-4, steps=int(stop))
    assert torch.equal(stack_weights(nets)[1], stack_weights(halted)[1])
    assert torch.isfinite(stack_weights(nets)).all()
    others = start.take([0, 2])
    calm = descend(others, (X, Y), lr=0.1, weight_decay=1e-4, steps=30)
    np.testing.assert_allclose(run.loss[:, [0, 2]], calm.loss, rtol=1e-12)
    assert torch.allclose(stack_weights(nets)[[0, 2]], stack_weights(others), rtol=1e-12, atol=1e-15)


def test_a_run_that_is_lost_from_the_start_takes_no_other_with_it():
    nets = Stack((5, 16, 2), seeds=[0, 1, 2], **NTK)
    with torch.no_grad():
        nets.weights[0][1] = torch.nan
    run = descend(nets, (X, Y), lr=0.1, steps=5)
    assert run.diverged_at == [None, 0, None] and np.isfinite(run.loss[:, [0, 2]]).all()


def test_a_gradient_that_overflows_is_lost_before_it_moves_the_weights():
    stack = Stack((64, 16, 10), seeds=[0, 1], head_scale=1e4)
    stack.scale_(torch.tensor([1.0, 1e-17]))
    before = stack_weights(stack)[1].clone()
    run = descend(stack, load_dataset("digits"), lr=0.1, steps=3, batch_size=8)
    assert run.diverged_at == [None, 0] and torch.equal(stack_weights(stack)[1], before)


def test_a_run_that_starts_at_next_to_nothing_may_rise_far():
    """A catapult from a loss of 1e-13 is no divergence: it rises by more than a million, and lands."""
    nets = Stack((1, 512, 1), seeds=[3], activation="identity", **NTK)
    one = torch.ones(1, 1, **F64)
    y, curvature = nets(one)[0].detach() + 1e-6, wide_curvature(nets, one).item()
    run = descend(nets, (one, y), lr=2.5 / curvature, steps=100)
    assert run.loss.max() > 1e7 * run.loss[0, 0] > 0 and run.loss[-1, 0] < 1e-3 * run.loss.max()
    assert run.diverged_at == [None]


@pytest.mark.parametrize(("c", "grows"), [(1.9, False), (2.5, True), (4.6, True)])
def test_the_edges_of_a_linear_net(c, grows):
    x = torch.randn(20, 10, generator=torch.Generator().manual_seed(3), **F64)
    nets = Stack((10, 1024, 1), seeds=range(3), activation="identity", **NTK)
    curvature = wide_curvature(nets, x, iterations=400).detach()
    run = descend(nets, (x, torch.sign(x[:, :1])), lr=c / curvature.numpy(), steps=60)
    peak = np.nanmax(run.loss, axis=0) / run.loss[0]
    assert (peak > 2).all() if grows else (peak < 1.001).all()
    assert [at is not None for at in run.diverged_at] == [c > 4] * 3


def test_bad_input():
    stack = Stack((64, 16, 10), seeds=range(2))
    data, options = load_dataset("digits"), {"lr": 0.1, "steps": 5, "batch_size": 8}
    for change, message in (
        (
            {"lr": [0.1] * 3},
            r"lr must be a number, \(2,\) or what broadcasts to .* \(2, 5\), got shape \(3,\)",
        ),
        ({"lr": [0.1, -1.0]}, "lr must be finite and >= 0, got -1.0"),
        ({"weight_decay": np.nan}, "weight_decay must be finite and >= 0, got nan"),
        ({"seeds": [0]}, "seeds must hold one for each of 2 runs, got 1"),
        ({"every": 0}, "every must be >= 1, got 0"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        (
            {"batch_size": 9999, "replacement": False},
            "batch_size must be <= .* without replacement, got 9999",
        ),
        (
            {"probes": {"f": lambda s: s.weights[0].sum()}},
            r"probes\['f'\] must give \(R, ...\), R = 2, got",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            descend(stack, data, **{**options, **change})
    with pytest.raises(TypeError, match="lr must be a number"):
        descend(stack, data, **{**options, "lr": "fast"})
    with pytest.raises(KeyError, match=r"no probe named 'f'; the run recorded \['grad_sq'\]"):
        descend(stack, data, **options)["f"]
