"""The runs of the intrinsic learning rate, at the size of a test."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import normcore as nc
from normcore import lab
from normcore.experiments import intrinsic_lr as runs
from normcore.experiments import stored
from normcore.experiments.__main__ import main
from normcore.norm_dynamics.monitor import NormMonitor

SHORT = replace(runs.TINY, weight_decay=0.5)  # a unit of 2 or 3 steps


@pytest.fixture(scope="module")
def digits():
    return lab.load_dataset("digits")


def test_the_defaults_are_those_of_the_paper():
    setting = runs.Setting()
    assert (setting.lr, setting.depth, setting.width, setting.batch_size) == (0.8, 32, 16, 128)
    assert setting.unit == 625  # 1.6 epochs
    later = nc.relaxation(8125, ratio_lr=0.1, lr=0.8, weight_decay=2e-3)
    assert runs.SECOND * setting.unit == 8125 and later == pytest.approx(10**-0.5, rel=0.03)


def test_rates_of_the_arms():
    unit = runs.Setting().unit
    products = {}
    for arm in runs.ARMS:
        lr, wd = runs.rates_of(arm, runs.Setting())
        assert len(lr) == len(wd) == sum(round(length * unit) for *_, length in runs.PHASES[arm])
        products[arm] = lr[0] * wd[0] / 1.6e-3
    assert products["lr/4 wd*4"] == pytest.approx(products["base"]) == pytest.approx(products["lr/2 wd*2"])
    assert products["wd/4"] == pytest.approx(0.25)
    lr, wd = runs.rates_of("lr/10 wd*10", runs.Setting())
    assert (lr[7499], lr[7500]) == (0.8, pytest.approx(0.08)) and wd[7500] == pytest.approx(2e-2)
    ends = {tuple(map(tuple, runs.PHASES[past][-2:])) for past in runs.DRAWN}
    assert ends == {((1, 1, runs.FIRST), (0.1, 0, 2))}, "the drawn must end alike"
    with pytest.raises(ValueError, match="arm must be one of .*got 'adam'"):
        runs.rates_of("adam", runs.Setting())


def test_drawn_schedules():
    phases = np.array(list(runs.DRAWN.values()))  # arm, phase, (factors, length)
    assert phases.shape == (5, 3, 3) and (phases[..., 2].sum(axis=1) == 5).all()
    assert (phases[..., :2] >= 0.1).all() and (phases[..., :2] <= 10).all()
    assert (phases[..., 0] * phases[..., 1]).max() == pytest.approx(3)
    assert len(np.unique(phases[..., 0])) == 15, "each is a draw of its own"


def test_drawn_arms_share_neither_weights_nor_batches(digits):
    """Of each run only the reading before the first step is looked at: few images and steps will do."""
    setting, few = replace(SHORT, readings=1, weight_decay=1.25, batch_size=20), digits.subset(20, 50)
    first = [
        runs.train_arm(arm, seed, setting, few, progress=False)[0]
        for arm, seed in [("drawn 1", 0), ("drawn 2", 0), ("drawn 1", 1), ("base", 0), ("wd/4", 0)]
    ]
    losses = [records["test_loss"][0] for records in first]
    assert len(set(losses[:4])) == 4, "weights of their own"
    assert losses[3] == losses[4], "control: other arms share them"


def move(net, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in lab.trainable(net):
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))


@pytest.fixture
def net():
    return lab.mlp((64, 8, 10), dtype=torch.float64)


def test_chords_are_measured_from_a_reading(net):
    probe, read, directions = runs.Chord(2), [], []
    for seed in range(5):
        read.append(probe(net))
        directions.append(lab.direction(net))
        move(net, seed)
    assert np.isnan(read[:2]).all() and read[2] == 0.0
    expected = [float((d - directions[2]).norm()) for d in directions[3:]]
    np.testing.assert_allclose(read[3:], expected, rtol=1e-12)
    other = runs.Chord(2)
    other.load_state_dict(probe.state_dict())
    assert other(net) == probe(net) > 0


def test_readings_of_the_monitor(net):
    optimizer = torch.optim.SGD(lab.trainable(net), lr=0.1, weight_decay=0.1)
    probe = runs.MonitorReading(NormMonitor(optimizer))
    assert probe(net).isnan().all() and len(probe(net)) == 3
    for p in lab.trainable(net):
        p.grad = torch.ones_like(p)
    before = lab.direction(net)
    optimizer.step()
    rho, angle, square = probe(net).tolist()
    assert angle == pytest.approx(math.acos(float(before @ lab.direction(net))), rel=1e-5)
    assert rho > 0 and square > 0
    assert "steps" in probe.state_dict()


def test_records_against_a_loop_by_hand(digits):
    setting = replace(SHORT, readings=1)
    records, diverged_at = runs.train_arm("drawn 5", 3, setting, digits, progress=False)
    lr, wd = runs.rates_of("drawn 5", setting)
    assert diverged_at is None and setting.unit == 2 and len(lr) == 38
    net = lab.preresnet(8, width=4, seed=5_003)
    optimizer = torch.optim.SGD(lab.trainable(net), lr=1.0)
    losses, norms, accuracies, angles = [], [], [], [math.nan]
    score = lab.accuracy_on(digits.x_test, digits.y_test)
    for t, (x, y) in enumerate(digits.batches(len(lr), 100, 5_003, replacement=False)):
        if t % 2 == 0:
            norms.append(lab.weight_norm(net))
            accuracies.append(score(net))
        optimizer.param_groups[0].update(lr=lr[t], weight_decay=wd[t])
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        before = lab.direction(net).double()
        optimizer.step()
        losses.append(loss.item())
        chord = float((lab.direction(net).double() - before).norm())
        angles.append(2 * math.asin(chord / 2))
    np.testing.assert_array_equal(records["step"], np.arange(0, 39, 2))
    np.testing.assert_allclose(records["norm"][:-1], norms, rtol=1e-12)
    np.testing.assert_allclose(records["test_accuracy"][:-1], accuracies, rtol=1e-12)
    np.testing.assert_allclose(records["angle"], np.array(angles)[::2], rtol=1e-3)
    np.testing.assert_allclose(records["train_loss"][1:], np.reshape(losses, (-1, 2)).mean(1), rtol=1e-12)
    np.testing.assert_allclose(records["worst_loss"][1:], np.reshape(losses, (-1, 2)).max(1), rtol=1e-12)
    np.testing.assert_allclose(records["lr"][:-1], lr[::2])
    assert np.isnan(records["swa_accuracy"][:17]).all() and np.isfinite(records["swa_accuracy"][17:]).all()
    assert np.isnan(records["chord"][0]) and records["chord"][1] == 0.0  # in the middle of two units
    assert records["rho"][1:17].min() > 0 and np.isnan(records["rho"][-1])  # without decay there is none
    assert len({len(values) for values in records.values()}) == 1


def test_full_batch_against_a_loop_by_hand(digits):
    setting = replace(SHORT, readings=1)
    records, _ = runs.train_arm("full batch", 0, setting, digits, progress=False)
    few, net = digits.subset(train=100, seed=0), lab.preresnet(8, width=4)
    optimizer = torch.optim.SGD(lab.trainable(net), lr=0.8, weight_decay=0.5)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(few.x_train), few.y_train)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(records["train_loss"][1:4], np.reshape(losses, (3, 2)).mean(1), rtol=1e-5)
    without = records["weight_decay"] == 0.0
    assert 0 < without.sum() < len(without) and records["lr"][-1] == 0.8
    assert (np.diff(records["norm"][without]) >= 0).all(), "without decay the norm cannot fall"


def test_arms_that_fit_differ_in_the_rate_alone():
    unit = runs.DIGITS.unit
    for arm, k in zip(runs.FITTED, (1, 2, 4, 8), strict=False):
        lr, wd = runs.rates_of(arm, runs.DIGITS)
        assert len(lr) == 10 * k * unit and (lr == 0.4 / k).all() and (wd == 0.025).all()
    lr, wd = runs.rates_of("full batch wd 0", runs.DIGITS)
    assert (lr == 0.4).all() and (wd == 0.0).all()
    assert runs.RUNS.own_arms["digits"] == tuple(runs.FITTED) and not set(runs.FITTED) & set(runs.ARMS)


def test_an_arm_that_fits_against_a_loop_by_hand(digits):
    setting = replace(runs.DIGITS, weight_decay=1.0)  # a unit of 2 steps
    records, _ = runs.train_arm("full batch lr/2", 1, setting, digits, progress=False)
    few, net = digits.subset(train=100, seed=1), lab.preresnet(8, width=4, seed=1)
    net[-1].weight.data.mul_(5.0)
    optimizer = torch.optim.SGD(lab.trainable(net), lr=0.2, weight_decay=1.0)
    losses, accuracies, norms = [], [], []
    for _ in range(40):
        optimizer.zero_grad()
        outputs = net(few.x_train)
        accuracies.append(float((outputs.argmax(dim=1) == few.y_train).double().mean()))
        norms.append(lab.weight_norm(net))
        loss = torch.nn.functional.cross_entropy(outputs, few.y_train)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_array_equal(records["step"], np.arange(41))
    np.testing.assert_allclose(records["worst_loss"][1:6], losses[:5], rtol=1e-4)
    np.testing.assert_allclose(records["norm"][:5], norms[:5], rtol=1e-5)
    np.testing.assert_allclose(records["train_accuracy"][:5], accuracies[:5], atol=0.02)
    assert set(records) == {"step", "norm", "test_accuracy", "worst_loss", "train_accuracy"}


def test_a_run_goes_on_from_its_checkpoint(digits, tmp_path, monkeypatch):
    whole, _ = runs.train_arm("lr/4 wd*4", 1, SHORT, digits, progress=False)
    chord, calls = runs.Chord.__call__, []

    def stop(self, model):
        calls.append(1)
        if len(calls) == 16:  # while weights are averaged
            raise KeyboardInterrupt
        return chord(self, model)

    monkeypatch.setattr(runs.Chord, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        runs.train_arm("lr/4 wd*4", 1, SHORT, digits, folder=tmp_path, progress=False)
    monkeypatch.setattr(runs.Chord, "__call__", chord)
    resumed, _ = runs.train_arm("lr/4 wd*4", 1, SHORT, digits, folder=tmp_path, progress=False)
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values, err_msg=name)


def test_the_command_line(tmp_path, capsys, monkeypatch):
    tiny = {**runs.RUNS.settings, "tiny": SHORT}
    monkeypatch.setattr(runs, "RUNS", replace(runs.RUNS, settings=tiny))
    command = [
        "intrinsic_lr",
        "--size",
        "tiny",
        "--device",
        "cpu",
        "--arms",
        "lr/2 wd*2",
        "lr/4 wd*4",
        "--seeds",
        "0",
    ]
    command += ["--work", str(tmp_path / "work")]
    assert main(command) == 0
    assert capsys.readouterr().out.count("test accuracy") == 2
    found = stored.load(tmp_path / "work" / "intrinsic_lr.json")
    assert found.arms == ["lr/2 wd*2", "lr/4 wd*4"] and found.settings["weight_decay"] == 0.5
    assert main(command) == 0
    output = capsys.readouterr().out
    assert output.count("stored before") == 2 and "test accuracy" not in output
