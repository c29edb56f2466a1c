"""The warm-up model: equal to gradient descent on weights, exact at any width, phases at their edges."""

import numpy as np
import pytest
from oracles_curvature import descend, scalar_map

from normcore import catapult


def weights(n, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(n), rng.standard_normal(n)


def start_of(u, v, x=1.0):
    n = len(u)
    return x * u @ v / np.sqrt(n), x**2 * (u @ u + v @ v) / n


@pytest.mark.parametrize("label, x", [(0.0, 1.0), (0.7, 1.0), (-1.3, 0.6), (0.0, -2.0)])
@pytest.mark.parametrize("scaled", [0.7, 2.4, 3.3])
def test_equals_gradient_descent_on_the_weights(label, x, scaled):
    n = 400
    u, v = weights(n, 1)
    f, curvature = start_of(u, v, x)
    lr = scaled / curvature
    run = catapult.simulate(f, curvature, lr, n, 12, label=label, input=x)
    direct = list(descend(u[:, None], v, [[x]], [label], lr, 12))
    outputs = np.array([float(o[0]) for o, _ in direct])
    curvatures = np.array([float(k[0, 0]) for _, k in direct])
    scale = np.abs(outputs).max()
    assert np.abs(run.output - outputs).max() < 1e-12 * scale
    assert np.abs(run.curvature - curvatures).max() < 1e-12 * curvatures.max()
    other = catapult.simulate(f, curvature, lr, n, 12, label=label + 0.1, input=x)  # the comparison can fail
    assert np.abs(other.output - outputs).max() > 1e-3


def test_equals_the_scalar_map_and_broadcasts():
    f, curvature = np.array([[0.3], [1.1]]), np.array([[2.1], [1.9]])
    lrs, labels = np.array([0.3, 1.2, 1.7]), 0.4
    run = catapult.simulate(f, curvature, lrs, 5000, 15, label=labels)
    assert run.output.shape == run.curvature.shape == (16, 2, 3) and run.phase.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        o, c = scalar_map(f[i, 0], curvature[i, 0], lrs[j], 5000, labels, 1.0, 15)
        assert np.allclose(run.output[:, i, j], o, rtol=1e-11, atol=1e-12)
        assert np.allclose(run.curvature[:, i, j], c, rtol=1e-11)


def test_width_2_to_60_keeps_its_digits():
    n, lr = 2**60, 1.25
    run = catapult.simulate(0.9, 2.0, lr, n, 12)
    linear = 0.9 * (1 - lr * 2.0) ** np.arange(13)
    assert np.abs(run.output / linear - 1).max() < 1e-12
    # the naive form loses the output to cancellation: P - Q is 1e-9 of P + Q
    s = lr * 0.77 / np.sqrt(n)
    p, q = lr + s, lr - s
    naive = (p - q) / 2 * np.sqrt(n) / lr
    assert abs(naive / 0.77 - 1) > 1e-9
    long = catapult.simulate(0.9, 2.0, lr, n, 400)
    assert long.phase == "catapult" and lr * long.curvature[-1] < 2 and abs(long.residual[-1]) < 1e-9
    peak_step = int(np.argmax(np.abs(long.output)))
    assert abs(peak_step - catapult.duration(2.5, n)) < 6


@pytest.mark.parametrize("n", [16, 128, 1024, 2**40])
def test_phases_by_sweep(n):
    f, curvature = catapult.initial_state(n, 12, seed=3)
    a = np.array([0.5, 1.5, 1.99, 2.2, 2.6, 3.3, 3.9, 4.01, 4.5])[:, None]
    lower, upper = catapult.edges(f, curvature, n)
    run = catapult.simulate(f, curvature, a / curvature, n, 3000)
    assert run.phase_is_exact.all()
    last = np.abs(run.output[-1])
    assert np.array_equal(run.phase == "divergent", ~np.isfinite(last))
    assert (last[np.isfinite(last)] < 1e-4).all()
    rose_first = run.loss[1] > run.loss[0]
    assert np.array_equal(rose_first, (run.phase != "lazy"))
    rose = run.loss[:, run.phase == "lazy"].max(axis=0) > run.loss[0, run.phase == "lazy"]
    assert not rose.any()
    above = a / curvature > np.where(np.isnan(lower), upper, lower)
    assert np.array_equal(above, run.phase != "lazy")
    done = run.phase != "divergent"
    assert (((a / curvature) * run.curvature[-1])[done] <= 2 + 1e-9).all()


def test_the_edges_are_sharp():
    f, curvature, n = 1.3, 2.2, 50
    lower, upper = (float(e) for e in catapult.edges(f, curvature, n))
    assert lower > 2 / curvature * 1.01  # O(1/n) above 2/lambda, visible at n = 50
    for lr, first_rises in ((lower * (1 - 1e-9), False), (lower * (1 + 1e-9), True)):
        run = catapult.simulate(f, curvature, lr, n, 1)
        assert (run.loss[1] > run.loss[0]) == first_rises
        assert run.phase == ("catapult" if first_rises else "lazy")
    below = catapult.simulate(f, curvature, upper * (1 - 1e-2), n, 20_000)
    above = catapult.simulate(f, curvature, upper * (1 + 1e-2), n, 20_000)
    assert below.loss[-1] < 1e-12 and np.isinf(above.loss[-1])


def test_at_the_upper_edge_the_angle_triples():
    n, angle = 100, 0.3
    z = 4 * np.sin(angle) ** 2
    run = catapult.simulate(np.sqrt(z * n), 4.0, 1.0, n, 8)
    assert np.allclose(run.output**2 / n, 4 * np.sin(angle * 3.0 ** np.arange(9)) ** 2, rtol=1e-8)
    assert run.phase == "divergent" and np.abs(run.curvature - 4).max() < 1e-11


def test_what_is_lost_in_curvature_is_spent_on_the_loss():
    n, lr = 300, 1.6
    run = catapult.simulate(0.8, 2.0, lr, n, 500)
    a, z = lr * run.curvature, lr**2 * run.output**2 / n
    assert abs(np.sum(z * (4 - a)) - (a[0] - a[-1])) < 1e-12
    assert (2 * np.sqrt(z) <= a * (1 + 1e-12)).all()


def test_a_label_moves_the_edge_and_the_phase_is_read_off_the_run():
    f, curvature = catapult.initial_state(64, 200, seed=5)
    near = catapult.simulate(f, curvature, 3.9 / curvature, 64, 2000, label=1.0)
    exact = catapult.simulate(f, curvature, 3.9 / curvature, 64, 2000)
    assert not near.phase_is_exact.any() and 0.1 < np.mean(near.phase == "divergent") < 0.6
    assert np.mean(exact.phase == "divergent") == 0
    wide_f, wide_curvature = catapult.initial_state(2**20, 200, seed=5)
    wide = catapult.simulate(wide_f, wide_curvature, 3.9 / wide_curvature, 2**20, 2000, label=1.0)
    assert np.mean(wide.phase == "divergent") == 0


def test_a_run_whose_loss_rises_and_falls_is_a_catapult_with_any_label():
    rates = np.array([0.9, 1.5, 2.5])
    run = catapult.simulate(1.0, 2.0, rates, 2**20, 2000, label=0.5)
    assert run.phase.tolist() == ["lazy", "catapult", "divergent"] and not run.phase_is_exact.any()
    rose = run.loss[:, :2].max(axis=0) > run.loss[0, :2]
    assert rose.tolist() == [False, True] and (run.loss[-1, :2] < 1e-12).all()


def test_a_run_that_starts_at_its_label_stays():
    run = catapult.simulate(0.0, 2.0, 1.5, 100, 5)
    assert run.phase == "lazy" and not run.output.any()


def test_initial_states_have_the_law_of_weights():
    f, curvature = catapult.initial_state(40, 4000, seed=1, input=2.0)
    rng = np.random.default_rng(2)
    u, v = rng.standard_normal((2, 4000, 40))
    direct = 2 * (u * v).sum(1) / 40**0.5, 4 * ((u**2).sum(1) + (v**2).sum(1)) / 40
    for drawn, naive in zip((f, curvature), direct, strict=True):
        assert abs(drawn.mean() - naive.mean()) < 5 * naive.std() / 4000**0.5
        assert abs(drawn.std() / naive.std() - 1) < 0.06


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr": -0.1}, "lr must be finite and > 0, got -0.1"),
        ({"curvature": 0.0}, "curvature must be finite and > 0, got 0.0"),
        ({"width": 0}, "width must be finite and >= 1, got 0.0"),
        ({"output": np.nan}, "output must be finite, got nan"),
        ({"output": 30.0}, r"curvature must be >= 2 \|output input\| / sqrt\(width\), .*, got 2.0"),
        ({"input": 0.0}, "input must be other than 0, got 0.0"),
        ({"steps": -1}, "steps must be >= 0, got -1"),
    ],
)
def test_bad_input(change, message):
    arguments = {"output": 1.0, "curvature": 2.0, "lr": 0.5, "width": 100, "steps": 3, **change}
    with pytest.raises(ValueError, match=message):
        catapult.simulate(**arguments)


def test_words_are_refused():
    with pytest.raises(TypeError, match="lr must be a number or an array of numbers, got 'fast'"):
        catapult.simulate(1.0, 2.0, "fast", 100, 3)
