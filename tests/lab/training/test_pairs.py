"""Pairs of runs and their ruler."""

import numpy as np
import pytest
import torch
from oracles_lab import sgd_losses

import normcore as nc
from normcore.lab import (
    cnn,
    direction,
    load_dataset,
    max_gap,
    mlp,
    preresnet,
    rounding_twin,
    run,
    weight_vector,
)

DATA = load_dataset("digits", dtype=torch.float64)
BATCHES = DATA.batches(40, 32)
NET = mlp((64, 16, 16, 10), dtype=torch.float64)


def test_a_run_leaves_its_net_alone_and_takes_a_factory():
    before = weight_vector(NET)
    one = run(NET, BATCHES, lr=0.1)
    assert torch.equal(before, weight_vector(NET))
    other = run(lambda: mlp((64, 16, 16, 10), dtype=torch.float64), BATCHES, lr=0.1)
    assert max_gap(one["direction"], other["direction"]) == 0.0


def test_arrays_are_the_values_of_each_step():
    rng = np.random.default_rng(0)
    lr, decay, momentum = rng.uniform(0.01, 0.1, 12), rng.uniform(0, 0.02, 12), rng.uniform(size=12)
    losses, last = sgd_losses(NET, BATCHES[:12], lr, decay, momentum)
    ours = run(NET, BATCHES[:12], lr=lr, weight_decay=decay, momentum=momentum)
    np.testing.assert_allclose(ours.loss, losses, rtol=1e-9)
    assert float((torch.tensor(ours["direction"][-1]) - direction(last)).norm()) < 1e-10
    constant = run(NET, BATCHES[:12], lr=lr.mean(), weight_decay=decay, momentum=momentum)
    assert np.abs(constant.loss - losses).max() > 1e-4  # control


@pytest.mark.parametrize("net", [NET, cnn(dtype=torch.float64), preresnet(dtype=torch.float64)])
def test_equal_runs_and_unequal_ones(net):
    rates = nc.StepDecay(0.1, (10,)).values(20)
    batches = BATCHES[:20]
    decay = run(net, batches, lr=rates, weight_decay=1e-2, momentum=0.9)
    free = run(net, batches, schedule=nc.texp_plus_plus(rates, 1e-2, 0.9))
    none = run(net, batches, lr=rates, momentum=0.9)
    assert max_gap(decay["direction"], free["direction"]) < 1e-10
    assert max_gap(decay["direction"], none["direction"]) > 1e-5


def test_nesterov_reaches_the_optimizer():
    settings = {"lr": 0.1, "weight_decay": 1e-2, "momentum": 0.9, "nesterov": True}
    schedule = nc.equivalent_schedule(**settings, steps=40)
    decay = run(NET, BATCHES, **settings)["direction"]
    assert max_gap(decay, run(NET, BATCHES, schedule=schedule, nesterov=True)["direction"]) < 1e-9
    assert max_gap(decay, run(NET, BATCHES, schedule=schedule)["direction"]) > 1e-4


def test_dampening_reaches_the_optimizer_and_skips_the_first_step():
    settings = {"lr": 0.1, "weight_decay": 1e-2, "momentum": 0.9}
    decay = run(NET, BATCHES, **settings, dampening=0.5)["direction"]

    def gap(dampening):
        schedule = nc.equivalent_schedule(**settings, dampening=dampening, steps=40)
        return max_gap(decay, run(NET, BATCHES, schedule=schedule, dampening=0.5)["direction"])

    assert gap([0.0] + [0.5] * 39) < 1e-9
    assert gap(0.5) > 1e-5


def test_rounding_twin_is_one_unit_away():
    twin, head = rounding_twin(NET), NET[-1].weight
    w, moved = weight_vector(NET).numpy(), weight_vector(twin).numpy()
    up, down = np.nextafter(w, np.inf), np.nextafter(w, -np.inf)
    assert ((moved == up) | (moved == down)).all()
    assert 0.4 < (moved == up).mean() < 0.6
    assert torch.equal(twin[-1].weight, head)
    assert not torch.equal(weight_vector(rounding_twin(NET, 1)), weight_vector(twin))
    assert torch.equal(weight_vector(rounding_twin(NET)), weight_vector(twin))


def test_equal_runs_drift_apart_no_faster_than_a_twin():
    settings = {"lr": 0.1, "weight_decay": 1e-2, "momentum": 0.9}
    decay = run(NET, BATCHES, **settings)["direction"]
    twin = run(rounding_twin(NET), BATCHES, **settings)["direction"]
    free = run(NET, BATCHES, schedule=nc.texp_plus_plus(*settings.values(), steps=40))["direction"]
    ratio = max_gap(decay, free) / max_gap(decay, twin)
    assert 0.01 < ratio < 100.0
    one_off = nc.texp_plus_plus(0.1 * (1 + 1e-6), 1e-2, 0.9, steps=40)  # control
    other = run(NET, BATCHES, schedule=one_off)["direction"]
    assert max_gap(decay, other) / max_gap(decay, twin) > 1e4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": float("nan")}, "lr must be finite and >= 0, got nan"),
        ({"lr": [0.1] * 39 + [float("inf")]}, "lr must be finite and >= 0, got inf"),
        ({"lr": 0.1, "weight_decay": float("nan")}, "weight_decay must be finite, got nan"),
        ({"lr": 0.1, "momentum": float("-inf")}, "momentum must be finite and >= 0 and < 1, got -inf"),
        ({"lr": [0.1, 0.2]}, r"lr must be a number or 40 of them, got \(2,\)"),
        (
            {"lr": 0.1, "momentum": 0.9, "schedule": nc.texp_plus_plus(0.1, 0.01, steps=40)},
            "lr, momentum must be left out, got it beside a schedule",
        ),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        run(NET, BATCHES, **options)


def test_no_batches_and_wrong_types():
    with pytest.raises(TypeError, match="lr must be given where there is no schedule, got None"):
        run(NET, BATCHES)
    with pytest.raises(ValueError, match="batches must hold at least one, got none"):
        run(NET, [], lr=0.1)
    with pytest.raises(TypeError, match="lr must be a number or an array of numbers, got 'a'"):
        run(NET, BATCHES, lr="a")


def test_weight_decay_may_be_negative_as_theorem_2_13_allows():
    net = mlp((64, 16, 10), dtype=torch.float64)
    batches = load_dataset("digits", dtype=torch.float64).batches(12, 32)
    decay = np.linspace(-0.02, 0.02, 12)
    pushed = run(net, batches, lr=0.1, weight_decay=decay, momentum=0.9)
    free = run(net, batches, schedule=nc.texp_plus_plus(np.full(12, 0.1), decay, 0.9))
    without = run(net, batches, lr=0.1, momentum=0.9)
    assert (
        max_gap(pushed["direction"], free["direction"])
        < 1e-13
        < max_gap(pushed["direction"], without["direction"])
    )
