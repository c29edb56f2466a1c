"""The closed weight-correlation form: equal to autograd on weights to 1e-12, at widths no weights fit."""

import numpy as np
import pytest
from oracles_curvature import descend

from normcore import catapult
from normcore.catapult.many_inputs import WeightCorrelations, simulate_full


def problem(n=60, d=4, m=7, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((m, d)), rng.choice([-1.0, 1.0], m)
    return rng.standard_normal((n, d)), rng.standard_normal(n), x, y


@pytest.mark.parametrize("d, m", [(4, 7), (6, 3)])
@pytest.mark.parametrize("scaled", [1.0, 2.6, 3.4])
def test_equals_autograd_descent(d, m, scaled):
    u, v, x, y = problem(d=d, m=m)
    start = WeightCorrelations.from_weights(u, v)
    lr = scaled / float(start.top(x))
    run = simulate_full(start, x, y, lr, 10)
    direct = list(descend(u, v, x, y, lr, 10))
    outputs = np.stack([o.numpy() for o, _ in direct])
    tops = np.array([np.linalg.eigvalsh(k.numpy())[-1] for _, k in direct])
    assert np.abs(run.output - outputs).max() < 1e-12 * np.abs(outputs).max()
    assert np.abs(run.curvature - tops).max() < 1e-12 * tops.max()
    assert np.abs(run.state.kernel(x) - direct[-1][1].numpy()).max() < 1e-12 * tops.max()
    assert np.abs(simulate_full(start, x, y, lr * 1.01, 10).output - outputs).max() > 1e-3  # it can fail


def test_one_step_obeys_the_kernel_formulas():
    u, v, x, y = problem()
    n, m = len(v), len(x)
    start = WeightCorrelations.from_weights(u, v)
    eta = 0.3
    f, kernel = start.outputs(x), start.kernel(x)
    run = simulate_full(start, x, y, eta, 1)
    ft, gram = f - y, u.T @ u
    zeta = x.T @ ft / m
    xz, xx = x @ zeta, x @ x.T
    f_next = f + (-eta * kernel @ ft + eta**2 / (n * m) * xz * (f @ ft) * m)
    paper = ft - eta * kernel @ ft + eta**2 / (n * m) * xz * (f @ ft)
    assert np.abs(run.output[1] - y - paper).max() < 1e-13
    assert np.abs(run.output[1] - f_next).max() > 1e-5  # the 1/m matters
    change = -eta / (n * m) * (np.outer(f, xz) + np.outer(xz, f) + 2 / m * xx * (f @ ft))
    change += eta**2 / (n**2 * m) * (v @ v * np.outer(xz, xz) + zeta @ gram @ zeta * xx)
    assert np.abs(run.state.kernel(x) - kernel - change).max() < 1e-13


def test_one_sample_is_the_warm_up_model():
    u, v, *_ = problem(n=50, d=1)
    start, x, y = WeightCorrelations.from_weights(u, v), np.array([[1.4]]), np.array([0.6])
    f, curvature = start.outputs(x)[0], start.top(x)
    lrs = np.array([0.5, 2.5, 3.2]) / curvature
    full = simulate_full(start, x, y, lrs, 25)
    small = catapult.simulate(f, curvature, lrs, 50, 25, label=0.6, input=1.4)
    assert np.allclose(full.output[..., 0], small.output, rtol=1e-9, atol=1e-11)
    assert np.allclose(full.curvature, small.curvature, rtol=1e-9)


@pytest.mark.parametrize("width", [2**12, 2**60])
def test_edges_by_sweep_over_a_batch(width):
    _, _, x, y = problem(d=5, m=10, seed=2)
    start = WeightCorrelations.draw(width, 5, 6, seed=1)
    scaled = np.array([1.9, 2.3, 3.0, 3.8, 5.0])[:, None]
    run = simulate_full(start, x, y, scaled / start.top(x), 400)
    assert run.output.shape == (401, 5, 6, 10) and run.curvature.shape == run.loss.shape == (401, 5, 6)
    expected = ["lazy", "catapult", "catapult", "catapult", "divergent"]
    assert all((run.phase[i] == phase).all() for i, phase in enumerate(expected))
    assert (scaled * run.curvature[-1] / start.top(x))[1:4].max() <= 2.01
    assert np.isinf(run.output[-1, 4]).all() and np.isinf(run.state.vv[4]).all()


def test_the_loss_is_half_the_mean_square():
    u, v, x, y = problem()
    start = WeightCorrelations.from_weights(u, v)
    rates = np.array([1.0, 2.6]) / start.top(x)
    run = simulate_full(start, x, y, rates, 60)
    naive = [[sum((f - t) ** 2 for f, t in zip(row, y, strict=True)) / 14 for row in at] for at in run.output]
    np.testing.assert_allclose(run.loss, naive, rtol=1e-13)
    assert run.phase.tolist() == ["lazy", "catapult"]


def test_drawn_correlations_have_the_law_of_weights():
    drawn = WeightCorrelations.draw(30, 2, 3000, seed=0)
    rng = np.random.default_rng(1)
    naive = WeightCorrelations.from_weights(
        rng.standard_normal((3000, 30, 2)), rng.standard_normal((3000, 30))
    )
    for a, b in (
        (drawn.vv, naive.vv),
        (drawn.uu[:, 0, 1], naive.uu[:, 0, 1]),
        (drawn.uv[:, 1], naive.uv[:, 1]),
    ):
        assert abs(a.mean() - b.mean()) < 5 * b.std() / 3000**0.5 and abs(a.std() / b.std() - 1) < 0.07
    tiny = WeightCorrelations.draw(2, 3, seed=0)
    assert np.linalg.matrix_rank(tiny.uu) == 2  # two rows cannot fill three dimensions


def test_bad_input():
    u, v, x, y = problem()
    start = WeightCorrelations.from_weights(u, v)
    with pytest.raises(ValueError, match=r"labels must be \(7,\), one a row of inputs, got shape \(6,\)"):
        simulate_full(start, x, y[:-1], 0.1, 3)
    with pytest.raises(ValueError, match="lr must be finite and > 0, got -1.0"):
        simulate_full(start, x, y, -1.0, 3)
    with pytest.raises(ValueError, match=r"u must be \(..., n, d\)"):
        WeightCorrelations.from_weights(u.T, v)
    with pytest.raises(ValueError, match=r"u must be \(..., n, d\) .*, got shapes \(0, 4\) and \(0,\)"):
        WeightCorrelations.from_weights(u[:0], v[:0])
    with pytest.raises(ValueError, match="width must be >= 1, got 0"):
        WeightCorrelations.draw(0, 2)
