"""The SDE simulator: closed solutions, the strong order by refinement, SGD with the same noise, and Gibbs' law."""

import numpy as np
import pytest
import torch
from oracles_equilibrium import fourth_power_ode, gibbs_mean, sgd_on_sphere

from normcore.lab.toys import sde
from normcore.lab.toys.sde import brownian_path, simulate_sde

SCALES = (1.0, 2.0, 3.0)


def loss(w):
    return (torch.tensor(SCALES, dtype=w.dtype) * w**2).sum(1) / (w**2).sum(1)


def start(runs, seed=0, norm=1.0):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(runs, 3, generator=g, dtype=torch.float64)
    return norm * w / w.norm(dim=1, keepdim=True)


def closed(t, gamma, rate, trace):
    """Gamma of the linear equation, solved."""
    end = trace / (2 * rate)
    return end + (gamma - end) * np.exp(-4 * rate * t)


def test_gamma_follows_its_closed_solution():
    gaps = []
    for n in (1, 2, 4, 8):
        run = simulate_sde(start(2), None, 1.5, lr=0.2, weight_decay=0.1, steps=60, dt=1 / n)
        want = closed(run.step, 1 / 0.2**2, 0.02, 2 * 1.5**2)
        gaps.append(np.abs(run.gamma[:, 0] / want - 1).max())
    orders = np.log2(np.array(gaps[:-1]) / gaps[1:])
    assert orders == pytest.approx(np.ones(3), abs=0.1)  # without noise Euler's order is 1
    assert gaps[-1] < 0.01
    assert run.effective_lr == pytest.approx(run.gamma**-0.5) and run.norm == pytest.approx(
        (run.gamma * 0.2**2) ** 0.25
    )
    assert want[-1] == pytest.approx(fourth_power_ode(1 / 0.2**2, 0.2, 0.1, 2 * 1.5**2, 60.0), rel=1e-9)


@pytest.mark.parametrize("form", ["direction", "weights"])
def test_strong_order(form):
    # A slow drift, whose own error is of order 1, so that the noise decides.
    steps, runs = 4, 300
    path = brownian_path(steps, (runs, 3), seed=1)
    settings = dict(lr=0.3, weight_decay=0.1, steps=steps, every=steps, form=form)

    def slow(w):
        return 0.1 * loss(w)

    ends = {
        n: simulate_sde(start(runs, norm=1.5), slow, 1.0, dt=1 / n, path=path, **settings).direction[-1]
        for n in (2, 4, 8, 128)
    }
    errors = [np.sqrt(((ends[n] - ends[128]) ** 2).sum(1).mean()) for n in (2, 4, 8)]
    order = np.polyfit(np.log([1 / 2, 1 / 4, 1 / 8]), np.log(errors), 1)[0]
    assert order == pytest.approx(0.5, abs=0.1)  # of Euler-Maruyama under noise that does not commute
    # Negative control: on another path the error does not fall.
    other = simulate_sde(start(runs, norm=1.5), slow, 1.0, dt=1 / 8, seed=9, **settings).direction[-1]
    assert np.sqrt(((other - ends[128]) ** 2).sum(1).mean()) > 5 * errors[-1]


def test_both_forms_are_one_process():
    steps, runs = 8, 100
    path = brownian_path(steps, (runs, 3), seed=2)
    gaps = []
    for n in (2, 32):
        one, other = (
            simulate_sde(
                start(runs), loss, 1.0, lr=0.1, weight_decay=0.1, steps=steps, form=form, dt=1 / n, path=path
            )
            for form in ("direction", "weights")
        )
        gaps.append(np.sqrt(((one.direction - other.direction) ** 2).sum(2).mean()))
    assert gaps[1] < 0.35 * gaps[0] and gaps[1] < 0.02


def test_whole_steps_in_the_weights_are_sgd_with_that_noise():
    steps, runs = 50, 4
    path = brownian_path(steps, (runs, 3), seed=3)
    run = simulate_sde(
        start(runs), loss, 0.7, lr=0.2, weight_decay=0.1, steps=steps, form="weights", path=path
    )
    w = start(runs).numpy()
    for t in range(steps):
        r = np.linalg.norm(w, axis=1, keepdims=True)
        u = w / r
        noise = 0.7 * path(float(t), float(t + 1)).numpy()
        noise -= u * (u * noise).sum(1, keepdims=True)
        gradient = 2 * (np.array(SCALES) * u - (np.array(SCALES) * u**2).sum(1, keepdims=True) * u) / r
        w = (1 - 0.2 * 0.1) * w - 0.2 * gradient + 0.2 * noise / r
    np.testing.assert_allclose(run.direction[-1] * run.norm[-1][:, None], w, rtol=1e-9)


def test_sgd_and_gibbs():
    # gamma -> s/(2 lambda_e) with s = 2 sigma^2; the direction then has the law exp(-2 sqrt(gamma) L/sigma^2).
    lr, wd, sigma, runs = 0.1, 0.1, 4.0, 200
    gamma = 2 * sigma**2 / (2 * lr * wd)
    want = gibbs_mean(SCALES, sigma**2 / (2 * np.sqrt(gamma)))
    norm = (gamma * lr**2) ** 0.25
    run = simulate_sde(
        start(runs, norm=norm), loss, sigma, lr=lr, weight_decay=wd, steps=700, dt=0.5, every=10
    )
    late = run.direction[len(run.step) // 2 :]
    ours = (np.array(SCALES) * late**2).sum(2)
    error = ours.mean(0).std() / np.sqrt(runs)
    assert run.gamma[-1] == pytest.approx(np.full(runs, gamma), rel=1e-6)
    assert abs(ours.mean() - want) < 4 * error + 0.005
    rng = np.random.default_rng(0)
    theirs, fourth, signal = sgd_on_sphere(
        SCALES, sigma, lr, wd, 700, runs, rng, start(runs, norm=norm).numpy()
    )
    assert theirs == pytest.approx(ours.mean(), abs=4 * error + 0.01)
    # SGD's norm sees the mean gradient too, which the limit drops: exact in discrete time with S = signal + noise.
    exact = (2 * sigma**2 + signal) / (2 * lr * wd - (lr * wd) ** 2)
    assert fourth / lr**2 == pytest.approx(exact, rel=0.01) and exact > 1.02 * gamma
    # Negative control: four times the intrinsic rate is another law.
    assert abs(gibbs_mean(SCALES, sigma**2 / (2 * np.sqrt(gamma / 4))) - want) > 20 * error


def test_exponential_rate_without_decay_is_the_same_process():
    path = brownian_path(20, (5, 3), seed=4)
    settings = dict(steps=20, dt=1 / 16, path=path)
    with_decay = simulate_sde(start(5), loss, 1.0, lr=0.1, weight_decay=0.3, **settings)
    growing = simulate_sde(
        start(5), loss, 1.0, lr=lambda t: 0.1 * np.exp(2 * 0.03 * t), weight_decay=0.0, **settings
    )
    wrong = simulate_sde(start(5), loss, 1.0, lr=0.1, weight_decay=0.0, **settings)
    assert growing.gamma[-1] == pytest.approx(with_decay.gamma[-1], rel=5e-3)
    assert np.abs(growing.direction - with_decay.direction).max() < 0.02
    assert np.abs(wrong.gamma[-1] / with_decay.gamma[-1] - 1).max() > 0.5
    assert growing.norm[-1].min() > 1.5 * with_decay.norm[-1].max()


def test_a_covariance_of_low_rank_and_one_that_depends_on_direction():
    a = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    run = simulate_sde(start(3), None, a, lr=0.1, weight_decay=0.1, steps=4)
    again = simulate_sde(start(3), None, lambda u: a.expand(len(u), 3, 1), lr=0.1, weight_decay=0.1, steps=4)
    assert np.array_equal(run.direction, again.direction)
    # Noise along the first axis moves the first axis' own direction not at all.
    pole = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
    still = simulate_sde(pole, None, a, lr=0.1, weight_decay=0.1, steps=4)
    assert np.array_equal(still.direction[-1, 0], [1.0, 0.0, 0.0])
    assert still.gamma[-1, 0] == pytest.approx(16 / 0.01 * (1 - 4 * 0.01) ** 4, rel=1e-12)
    assert 0 < run.defect < 0.05


def test_path_and_seed():
    settings = dict(lr=0.1, weight_decay=0.1, steps=6)
    one, same, other = (
        simulate_sde(start(2), loss, 1.0, seed=seed, **settings).direction for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    path = brownian_path(3, (2000, 1), seed=5)
    whole, parts = path(0.0, 3.0), [path(float(t), t + 1.0) for t in range(3)]
    torch.testing.assert_close(whole, sum(parts))
    assert float(whole.var()) == pytest.approx(3.0, rel=0.15)
    single = simulate_sde(torch.ones(3, dtype=torch.float64), loss, 1.0, every=3, **settings)
    assert single.step.tolist() == [0.0, 3.0, 6.0] and single.direction.shape == (3, 1, 3)


def test_a_run_that_loses_its_norm_is_nan_from_there_and_the_others_go_on():
    # With 4 lr wd = 2 a step takes |W|^4 to 2 lr^2 Tr(Sigma) - |W|^4 = 1 - |W|^4: below 0 for the longer run.
    begin = torch.tensor([[0.9, 0.0, 0.0], [1.2, 0.0, 0.0], [0.0, 0.5, 0.0]], dtype=torch.float64)
    run = simulate_sde(begin, None, 1.0, lr=0.5, weight_decay=1.0, steps=6, every=2)
    assert run.diverged_at == [None, 2, None] and run.step.tolist() == [0.0, 2.0, 4.0, 6.0]
    for record in (run.direction, run.norm, run.gamma, run.effective_lr):
        assert np.isnan(record[1:, 1]).all() and np.isfinite(record[0]).all()
        assert np.isfinite(record[:, [0, 2]]).all()
    assert np.isfinite(run.defect) and run.norm[-1, 0] == pytest.approx(0.9, rel=1e-3)


def test_the_path_is_drawn_where_the_start_lies(monkeypatch):
    made = []

    def path(*args, **options):
        made.append(options)
        return brownian_path(*args, **options)

    monkeypatch.setattr(sde, "brownian_path", path)
    simulate_sde(start(2), loss, 1.0, lr=0.1, weight_decay=0.1, steps=2, seed=5)
    assert made == [{"seed": 5, "dtype": torch.float64, "device": torch.device("cpu")}]
    assert brownian_path(2, (1, 1), device="cpu").device == "cpu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": torch.zeros(2, 3)}, r"start must be non-zero, finite weights of shape \(runs, d >= 2\)"),
        ({"start": torch.ones(2, 1)}, r"start must be .* got shape \(2, 1\)"),
        ({"loss": lambda w: (w**2).sum(1)}, "loss must be scale-invariant, got .* at w"),
        (
            {"loss": lambda w: (w / w.norm()).sum()},
            r"loss must give one value for each of 2 runs, got shape \(\)",
        ),
        (
            {"noise": torch.ones(2, 2)},
            r"noise must be finite, a number or of shape \(3, k\), got shape \(2, 2\)",
        ),
        ({"noise": float("nan")}, "noise must be finite"),
        ({"lr": 0.0}, "lr must be finite and > 0, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and >= 0, got -1.0"),
        ({"form": "polar"}, r"form must be one of \['direction', 'weights'\], got 'polar'"),
        ({"every": 3}, "every must divide steps, got every=3, steps=4"),
        ({"dt": 0.3}, "dt must be 1/n with an integer n, got 0.3"),
        ({"dt": 2.0}, "dt must be 1/n with an integer n, got 2.0"),
    ],
)
def test_bad_input(change, message):
    settings = {"start": start(2), "loss": loss, "noise": 1.0, "lr": 0.1, "weight_decay": 0.1, "steps": 4}
    with pytest.raises(ValueError, match=message):
        simulate_sde(**{**settings, **change})
