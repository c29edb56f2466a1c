"""Nets side by side are nets one by one: the same losses and directions, and nothing leaks from one to the other."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import normcore as nc
from normcore.lab import cnn, load_dataset, preresnet, run, run_side_by_side, trainable

DIGITS = load_dataset("digits", dtype=torch.float64)
F64 = {"dtype": torch.float64}
MAKES = {
    "cnn": lambda seed: cnn((4, 6), strides=(2, 2), seed=seed, **F64),
    "trained head": lambda seed: cnn((4, 6), affine=True, head="trained", seed=seed, **F64),
    "preresnet": lambda seed: preresnet(8, width=2, seed=seed, **F64),
}
DECAY = {"lr": 0.1, "weight_decay": 0.02, "momentum": 0.9}
PUSHED = {"schedule": nc.texp([(0.1, 3), (0.01, 3)], 0.02, 0.9)}


def orders(runs, steps=6):
    return [DIGITS.batches(steps, 20, seed, replacement=False) for seed in range(runs)]


@pytest.mark.parametrize("options", [DECAY, PUSHED], ids=["decay", "schedule"])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_each_net_is_trained_as_if_alone(make, options):
    nets, plan = [make(seed) for seed in range(3)], orders(3)
    before = copy.deepcopy([net.state_dict() for net in nets])
    together = run_side_by_side(nets, plan, **options)
    for net, own, record in zip(nets, plan, together, strict=True):
        alone = run(net, own, **options)
        np.testing.assert_allclose(record.loss, alone.loss, rtol=1e-12)
        np.testing.assert_allclose(record["direction"], alone["direction"], atol=1e-13)
        assert (record.step == alone.step).all() and record.diverged_at is None
    for net, state in zip(nets, before, strict=True):
        assert all((value == state[name]).all() for name, value in net.state_dict().items())


def test_another_neighbour_changes_nothing():
    """The control of the test above: other batches do."""
    net, plan = MAKES["cnn"](0), orders(3)
    first, also, other = (
        run_side_by_side([net] * 2, pair, lr=0.1)[0] for pair in (plan[:2], plan[::2], plan[1:])
    )
    np.testing.assert_allclose(first.loss, also.loss, rtol=1e-13)
    assert np.abs(first.loss - other.loss).max() > 1e-3


def test_readings_at_some_steps():
    net, plan = MAKES["cnn"](1), orders(1)
    (record,) = run_side_by_side([net], plan, lr=0.1, every=4)
    assert record.step.tolist() == [0, 4, 6]
    assert record["direction"].shape == (3, sum(p.numel() for p in trainable(net)))


def test_a_lost_loss_ends_all():
    nets, plan = [MAKES["cnn"](seed) for seed in range(2)], [list(order) for order in orders(2)]
    x, y = plan[1][3]
    plan[1][3] = x * np.nan, y
    for record in run_side_by_side(nets, plan, lr=0.1):
        assert record.diverged_at == 3
        assert np.isfinite(record.loss[:3]).all() and np.isnan(record.loss[3:]).all()


@pytest.mark.parametrize(
    ("nets", "message"),
    [
        ([], "nets must be at least one, got none"),
        ([cnn((4, 6), **F64), cnn((4, 8), **F64)], "nets must be of one make"),
        ([nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()], "nets must be of one make"),
        ([cnn((4, 6), norm="group", affine=True, **F64)], "got a GroupNorm"),
    ],
)
def test_nets_that_cannot_stand_side_by_side(nets, message):
    with pytest.raises(ValueError, match=message):
        run_side_by_side(nets, orders(len(nets)), lr=0.1)


def test_batches_that_do_not_fit():
    nets, plan = [MAKES["cnn"](seed) for seed in range(2)], orders(2)
    flat = [(x.flatten(1), y) for x, y in plan[0]]
    wide = DIGITS.batches(6, 30)
    for wrong in (plan[:1], [plan[0], orders(1, 5)[0]], [plan[0], wide], [flat, flat]):
        with pytest.raises(ValueError, match="batches must hold"):
            run_side_by_side(nets, wrong, lr=0.1)
    for option in ({"probes": {}}, {"loss_fn": nn.functional.cross_entropy}):
        with pytest.raises(TypeError, match="multiple values"):
            run_side_by_side(nets, plan, lr=0.1, **option)
