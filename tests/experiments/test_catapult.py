"""The runs of the catapult, at the size of a test."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from normcore import lab
from normcore.experiments import catapult as runs
from normcore.experiments import stored
from normcore.experiments.__main__ import main

SHORT = replace(runs.TINY, time=60.0, readings=5, curvature_images=40, train=100, test=60)


@pytest.fixture(scope="module")
def digits():
    return lab.load_dataset("digits").subset(SHORT.train, SHORT.test)


@pytest.mark.parametrize("name", runs.NETS)
def test_curvature_is_that_of_the_dense_kernel(name, digits):
    net = runs.make_net(name, 0, SHORT, 1, 10)
    x = digits.x_train[:4]
    rows = []
    for out in net(x).flatten():
        grads = torch.autograd.grad(out, [p for p in net.parameters() if p.requires_grad], retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    dense = torch.linalg.eigvalsh(torch.stack(rows) @ torch.stack(rows).T / len(x))[-1]
    found = runs.CurvatureAt(x, (0, 2))
    values = [found(net) for _ in range(3)]
    assert values[0] == values[2] == pytest.approx(float(dense), rel=1e-3) and np.isnan(values[1])


def test_nets_start_as_they_should(digits):
    plain, zero = (runs.make_net(name, 5, SHORT, 1, 10) for name in ("cnn", "zero"))
    x = digits.x_train
    assert zero(x).abs().max() == 0.0 and 0.3 < plain(x).detach().pow(2).mean() < 10
    with torch.no_grad():
        next(plain.parameters()).add_(0.1)
        next(zero.parameters()).add_(0.1)
    first = runs.make_net("cnn", 5, SHORT, 1, 10)
    torch.testing.assert_close(zero(x), plain(x) - first(x))
    with pytest.raises(ValueError, match="name must be one of .*got 'mlp'"):
        runs.make_net("mlp", 0, SHORT, 1, 10)


def test_the_loss_sums_over_outputs():
    output, y = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([0, 1])
    assert runs.half_mse(output, y).item() == (0 + 4 + 0 + 0) / 4


def test_records_against_a_loop_by_hand(digits):
    records, diverged_at = runs.train_arm("cnn 1.5", 2, SHORT, digits, progress=False)
    lr, c, curvature = records["rate"]
    assert diverged_at is None and c == 1.5 and lr * curvature == pytest.approx(1.5)
    net, losses = runs.make_net("cnn", 2, SHORT, 1, 10), []
    for x, y in digits.batches(100, 100, 2, replacement=False):
        target = torch.eye(10)[y]
        loss = (net(x) - target).pow(2).sum() / 200
        grads = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), grads, strict=True):
                p.sub_(lr * g)
        losses.append(loss.item())
    np.testing.assert_allclose(records["early_loss"], losses, rtol=1e-4)
    np.testing.assert_array_equal(records["time"], 1.5 * records["step"])
    assert records["step"][-1] == 100
    assert records["test_accuracy"][-1] == pytest.approx(
        lab.accuracy_on(digits.x_test, digits.y_test)(net), abs=0.02
    )
    read = np.isfinite(records["curvature"])
    assert read[[0, -1]].all() and read.sum() == 2  # a tenth of five readings is the start itself


def test_lazy_and_catapult(digits):
    wide = replace(SHORT, channels=(64, 128), curvature_images=100)
    found = {c: runs.train_arm(f"cnn {c}", 0, wide, digits, progress=False)[0] for c in ("1", "4")}
    peak = {c: r["early_loss"].max() / r["early_loss"][0] for c, r in found.items()}
    kept = {c: r["curvature"][-1] / r["curvature"][0] for c, r in found.items()}
    assert peak["1"] <= 1.0 and peak["4"] > 1.5
    assert kept["1"] > 0.8 and kept["4"] < 0.5


def test_flights_take_as_many_steps_at_every_rate_and_save_nothing_on_the_way(digits, tmp_path):
    few = runs.Flights(**runs.FLOWN | {"channels": (8, 16)}, time=12.0, curvature_images=30, readings=3)
    for c in (2.5, 8):
        records, _ = runs.train_arm(f"zero {c}", 0, few, digits.subset(30), folder=tmp_path, progress=False)
        assert records["step"].tolist() == [0, 4, 8, 12] and len(records["early_loss"]) == 12
        assert np.isfinite(records["curvature"]).tolist() == [False, True, True, True]
    assert not list(tmp_path.iterdir())
    first = records["early_loss"][0]
    assert first == pytest.approx(
        0.5, rel=1e-5
    )  # full batch, from output zero: half of one-hot labels' square


def test_a_run_that_overflows_is_recorded(digits, monkeypatch):
    monkeypatch.setattr(runs, "RATES", (*runs.RATES, 1e4))
    monkeypatch.setattr(runs, "ARMS", (*runs.ARMS, "wrn 1e4"))
    records, diverged_at = runs.train_arm("wrn 1e4", 0, SHORT, digits, progress=False)
    assert diverged_at is not None and np.isnan(records["curvature"][-1])
    with pytest.raises(ValueError, match="arm must be a net of .*got 'cnn 7'"):
        runs.train_arm("cnn 7", 0, SHORT, digits)


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", replace(runs.RUNS, settings={**runs.RUNS.settings, "tiny": SHORT}))
    command = ["catapult", "--size", "tiny", "--device", "cpu", "--arms", "zero 3", "--seeds", "0", "1"]
    assert main([*command, "--work", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("test accuracy") == 2
    found = stored.load(tmp_path / "catapult.json")
    assert found.seeds("zero 3") == [0, 1] and found.records("zero 3", "test_accuracy").shape[0] == 2
