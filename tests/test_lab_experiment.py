"""`Training`: one net at a time against a plain loop, many against one."""

import functools
import gc
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from oracles_lab import sgd_losses
from torch import nn

from normcore.lab import accuracy_on, cnn, load_dataset, mlp, weight_norm
from normcore.lab.experiment import Training
from normcore.lab.nets import two_layer
from normcore.lab.sweep import grid, sweep

DATA = load_dataset("digits", dtype=torch.float64)
MLP = functools.partial(mlp, (64, 12, 10), dtype=torch.float64)
CNN = functools.partial(cnn, (4, 6), affine=True, head="trained", dtype=torch.float64)


def wide(width=16, seed=0, activation="relu"):
    return two_layer(64, width, 1, seed=seed, activation=activation, dtype=torch.float64)


def catapult_loss(output, y):
    return ((output - y) ** 2).sum(dim=1).mean() / 2


X, Y = DATA.x_train[:50], (DATA.y_train[:50, None] % 2 * 2.0 - 1).double()
TRAININGS = {
    "mlp": Training(MLP, DATA, steps=15, batch_size=16),
    "conv and batch norm": Training(CNN, DATA, steps=10, batch_size=16),
    "two-layer": Training(wide, (X, Y), steps=20, loss_fn=catapult_loss),
}


def test_equals_a_plain_loop():
    training = Training(
        MLP, DATA, steps=10, batch_size=16, probes={"accuracy": accuracy_on(DATA.x_test, DATA.y_test)}
    )
    decay, momentum = np.linspace(0, 0.1, 10), [0.9] * 5 + [0.5] * 5
    losses, net = sgd_losses(MLP(seed=3), DATA.batches(10, 16, seed=3), [0.1] * 10, decay, momentum)
    results = training(lr=0.1, weight_decay=decay, momentum=momentum, seed=3)
    np.testing.assert_allclose(results["loss"], losses, rtol=1e-12)
    assert results["norm"] == pytest.approx(weight_norm(net), rel=1e-12) and results["diverged_at"] is None
    assert results["accuracy"] == accuracy_on(DATA.x_test, DATA.y_test)(net)
    assert training(lr=0.1, seed=4)["loss"][0] != results["loss"][0]  # control


@pytest.mark.parametrize("name", TRAININGS)
def test_together_is_one_by_one(name):
    cells = grid(lr=[0.02, 0.1], weight_decay=[0.0, 1e-2], momentum=[0.0, 0.9], seed=[0, 1])
    training = TRAININGS[name]
    one, many = (sweep(training, cells, backend=backend) for backend in ("loop", "vmap"))
    assert (one.backend, many.backend) == ("loop", "vmap")
    assert {r.status for r in one} == {r.status for r in many} == {"done"}
    np.testing.assert_allclose(many["loss"], one["loss"], rtol=1e-6)
    np.testing.assert_allclose(many["norm"], one["norm"], rtol=1e-6)
    assert len(np.unique(one["loss"][:, -1])) == 16  # control: all cells differ


def test_other_processes_give_the_same_bits():
    cells = grid(lr=[0.02, 0.1], seed=[0, 1])
    for training in TRAININGS.values():
        here, there = (sweep(training, cells, backend=b, workers=2) for b in ("loop", "processes"))
        np.testing.assert_array_equal(here["loss"], there["loss"])
        np.testing.assert_array_equal(here["norm"], there["norm"])


def test_cells_of_different_shapes_are_sorted_out():
    cells = grid(width=[8, 16], activation=["relu", "tanh"], lr=[0.1, 0.2], seed=[0, 1])
    one, many = (sweep(TRAININGS["two-layer"], cells, backend=backend) for backend in ("loop", "vmap"))
    np.testing.assert_allclose(many["loss"], one["loss"], rtol=1e-6)
    assert many.where(width=8, activation="tanh")["lr"].tolist() == [0.1, 0.1, 0.2, 0.2]


def test_large_groups_are_cut(monkeypatch):
    sizes = []

    def counted(models, *args, **options):
        sizes.append(len(models))
        return train_ensemble(models, *args, **options)

    from normcore.lab import experiment
    from normcore.lab.ensemble import train_ensemble

    monkeypatch.setattr(experiment, "train_ensemble", counted)
    monkeypatch.setattr(experiment, "STACK", 6 * (16 * 64 + 16))
    cells = grid(lr=[0.1], seed=range(14))
    many = TRAININGS["two-layer"].together(cells)
    assert sizes == [5, 5, 4]
    for cell, results in zip(cells, many, strict=True):
        np.testing.assert_allclose(results["loss"], TRAININGS["two-layer"](**cell)["loss"], rtol=1e-9)


def test_divergence_is_a_result_in_every_way():
    net = functools.partial(two_layer, 64, 16, 1, activation="identity")
    training = Training(net, (X.float(), Y.float()), steps=60, loss_fn=catapult_loss)
    cells = grid(lr=[0.01, 10.0], seed=[0, 1])
    one, many = (sweep(training, cells, backend=backend) for backend in ("loop", "vmap"))
    for result in (one, many):
        assert [r.status for r in result] == ["done", "done", "diverged", "diverged"]
        step = int(result[2]["diverged_at"])
        assert 0 < step < 59 and np.isfinite(result["loss"][2, :step]).all()
        assert not np.isfinite(result["loss"][2, step]) and np.isnan(result["loss"][2, step + 1 :]).all()
        assert math.isnan(result[0]["diverged_at"]) and result["loss"].shape == (4, 60)
    np.testing.assert_array_equal(one["diverged_at"], many["diverged_at"])
    np.testing.assert_allclose(many["norm"], one["norm"], rtol=1e-3)


def test_batches_of_a_pair_are_those_of_a_data_set():
    pair = (DATA.x_train, DATA.y_train)
    a, b = (Training(MLP, data, steps=5, batch_size=16)(lr=0.1, seed=2) for data in (DATA, pair))
    np.testing.assert_array_equal(a["loss"], b["loss"])
    a, b = (Training(MLP, data, steps=2)(lr=0.1) for data in (DATA, pair))
    np.testing.assert_array_equal(a["loss"], b["loss"])


def test_shortened_runs_are_the_beginning():
    for name, training in TRAININGS.items():
        cell = {"lr": 0.05, "momentum": np.linspace(0, 0.9, training.steps)}
        short = training.shortened(3)
        np.testing.assert_array_equal(short(**cell)["loss"], training(**cell)["loss"][:3], err_msg=name)
        np.testing.assert_allclose(short.together([cell, cell])[1]["loss"], short(**cell)["loss"], rtol=1e-9)
        assert training.shortened(10**6).steps == training.steps


def test_a_net_from_the_global_generator_is_still_the_cells_own():
    def net(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()

    training, cells = Training(net, DATA, steps=2, batch_size=8), grid(lr=[0.1], seed=[0, 1])
    one, many = (sweep(training, cells, backend=backend) for backend in ("loop", "vmap"))
    np.testing.assert_allclose(one["loss"], many["loss"], rtol=1e-9)
    np.testing.assert_array_equal(one["loss"], sweep(training, cells[::-1], backend="loop")["loss"][::-1])


def test_a_training_pickles_and_has_no_result_in_a_wrong_cell():
    assert (
        pickle.loads(pickle.dumps(TRAININGS["mlp"]))(lr=0.1)["loss"][0] == TRAININGS["mlp"](lr=0.1)["loss"][0]
    )
    bad = {
        "cell must have an lr": {"seed": 1},
        "lr must be >= 0 and finite, got -0.1": {"lr": -0.1},
        "momentum must be >= 0 and finite, got nan": {"lr": 0.1, "momentum": math.nan},
        "weight_decay must be a number or 15 of them, got shape (3,)": {"lr": 0.1, "weight_decay": [0.1] * 3},
        "unexpected keyword argument 'rate'": {"lr": 0.1, "rate": 1},
    }
    for message, cell in bad.items():
        for together in (False, True):
            with pytest.raises((ValueError, TypeError)) as error:
                TRAININGS["mlp"].together([cell]) if together else TRAININGS["mlp"](**cell)
            assert message in str(error.value)


def test_unfit_settings_are_refused():
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        Training(MLP, DATA, steps=0)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        Training(MLP, DATA, steps=1, batch_size=0)
    with pytest.raises(ValueError, match=r"probes must have names of their own, got \['norm'\]"):
        Training(MLP, DATA, steps=1, probes={"norm": weight_norm})


def test_memory_does_not_grow_with_steps():
    """With a hundred times the steps no more tensors are alive at the last one."""

    def alive_at_the_last(steps):
        step, alive = itertools.count(1), []

        def loss_fn(output, y):
            if next(step) == steps:
                alive.append(sum(type(o) in (torch.Tensor, nn.Parameter) for o in gc.get_objects()))
            return catapult_loss(output, y)

        Training(wide, (X, Y), steps=steps, loss_fn=loss_fn).together(grid(lr=[0.01], seed=[0, 1]))
        return alive[0]

    alive_at_the_last(3)
    assert alive_at_the_last(300) <= alive_at_the_last(3) + 3
