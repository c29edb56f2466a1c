"""The runs at the size of the paper, at the size of a test."""

import math

import numpy as np
import pytest
import torch

import normcore as nc
from normcore import lab
from normcore.experiments import exponential_lr as runs
from normcore.experiments import stored
from normcore.experiments.__main__ import main
from normcore.lab.nets.residual import resnet9

EPOCH = 12
"""Steps: 1,200 digits in batches of 100."""


def move(net, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in lab.trainable(net):
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))


@pytest.fixture(scope="module")
def digits():
    return lab.load_dataset("digits")


def small(**changes):
    return runs.Setting(**{**vars(runs.TINY), **changes})


def test_the_defaults_are_those_of_the_paper():
    growth = nc.growth_factor(runs.Setting.lr, runs.Setting.weight_decay, runs.Setting.momentum)
    assert round(growth ** (-2 * 391), 5) == 1.48123
    schedule = runs.rates_of("texp", runs.Setting(), 391)
    marks = [80 * 391 - 1, 80 * 391, 120 * 391 - 1, 120 * 391, 300 * 391 - 1]
    decades = schedule.log_lr[marks] / math.log(10)
    np.testing.assert_allclose(decades, [12.65, 11.65, 12.33, 11.33, 11.63], atol=0.01)


@pytest.mark.parametrize(
    ("arm", "at"), [("step decay", [0.1, 0.1, 0.01, 0.01]), ("cosine", [0.1, 0.085355, 0.05, 0.0146447])]
)
def test_rates_with_weight_decay(arm, at):
    rates = runs.rates_of(arm, small(epochs=4, milestones=(2,)), 3)
    np.testing.assert_allclose(rates[::3], at, rtol=1e-5)


def test_schedules_without_it():
    setting = small(epochs=4, milestones=(2,), weight_decay=1e-2)
    rates = runs.rates_of("step decay", setting, 3)
    plus = runs.rates_of("texp++", setting, 3)
    np.testing.assert_allclose(nc.equivalent_weight_decay(plus.log_lr, rates, 0.9), 1e-2, rtol=1e-9)
    twin = runs.rates_of("cosine twin", setting, 3)
    cosine = runs.rates_of("cosine", setting, 3)
    np.testing.assert_allclose(nc.equivalent_weight_decay(twin.log_lr, cosine, 0.9), 1e-2, rtol=1e-9)
    texp, minus = runs.rates_of("texp", setting, 3), runs.rates_of("texp--", setting, 3)
    assert sorted(texp.corrections) == [0, 6]
    jump = np.where(np.arange(12) < 6, 0, math.log(10))
    np.testing.assert_allclose(minus.log_lr - texp.log_lr, jump, atol=1e-12)
    with pytest.raises(ValueError, match="arm must be one of .*got 'sgd'"):
        runs.rates_of("sgd", setting, 3)


def test_arms_beside_those_of_the_theorems():
    setting = small(epochs=10, milestones=(5, 8), weight_decay=1e-2)
    rates = runs.rates_of("step decay", setting, 3)
    np.testing.assert_array_equal(runs.rates_of("neither", setting, 3), rates)
    kept, texp = (runs.rates_of(arm, setting, 3) for arm in ("growth kept", "texp"))
    np.testing.assert_allclose(kept.log_lr[:15], texp.log_lr[:15], atol=1e-12)
    growth = np.diff(kept.log_lr)  # the same in all phases, but for the two drops
    np.testing.assert_allclose(
        growth, growth[0] - math.log(10) * np.isin(np.arange(29), (14, 23)), atol=1e-12
    )
    ride = runs.rates_of("rise and fall", setting, 3)
    assert ride.argmax() in (5, 6) and (np.diff(np.abs(np.arange(30) - 5.5)) * np.diff(ride) <= 1e-12).all()
    assert 0 < ride[-1] < ride.max() / 20 and ride.max() <= setting.lr
    twin = runs.rates_of("rise and fall twin", setting, 3)
    np.testing.assert_allclose(nc.equivalent_weight_decay(twin.log_lr, ride, 0.9), 1e-2, rtol=1e-9)


def test_the_net_for_photographs_is_scale_invariant_in_each_weight():
    net = resnet9(4, 2.0, channels=3, classes=10, seed=1).double()
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    before = lab.logits(net, images)
    weights = lab.trainable(net)
    assert len(weights) == 8 and not net[-1].weight.requires_grad
    torch.testing.assert_close(
        net[-1].weight @ net[-1].weight.T, 4 * torch.eye(10).double(), atol=1e-5, rtol=0
    )
    for i, weight in enumerate(weights):
        weight.data.mul_(2.0 ** (i + 1))
        assert torch.equal(lab.logits(net, images), before)
    weights[0].data.add_(torch.randn_like(weights[0]))  # the control
    assert not torch.allclose(lab.logits(net, images), before, atol=1e-3)


@pytest.mark.parametrize(("autocast", "apart"), [(True, 0.05), (False, 1e-4)])
def test_photographs_at_the_size_of_a_test(digits, tmp_path, autocast, apart):
    """The twin follows for some steps, the control does not, and a finished run is read back."""
    brief = {"dataset": "digits", "epochs": 2, "milestones": (1,), "batch_size": 50, "crop": 0, "flip": False}
    setting = runs.Photographs(**brief, lr=0.1, weight_decay=5e-2, width=4, autocast=autocast)
    data = digits.subset(train=100, test=50)
    found = {
        arm: runs.train_arm(arm, 0, setting, data, folder=tmp_path / arm, progress=False)[0]
        for arm in ("step decay", "texp++", "neither")
    }
    base = found["step decay"]["step_angle"][0]
    assert found["texp++"]["step_angle"][0] == pytest.approx(base, rel=apart)
    assert found["neither"]["norm"][-1] > 1.01 * found["step decay"]["norm"][-1]
    again, _ = runs.train_arm("texp++", 0, setting, data, folder=tmp_path / "texp++", progress=False)
    for name, values in found["texp++"].items():
        np.testing.assert_array_equal(again[name], values, err_msg=name)
    assert set(runs.SIZES) == {"paper", "photographs", "small", "tiny"}


def test_the_angle_of_the_first_step_of_an_epoch():
    net = lab.mlp((64, 8, 10), dtype=torch.float64)
    probe, expected = runs.FirstStepAngle(3), []
    assert math.isnan(probe(net))
    for t in range(6):
        before = lab.direction(net)
        probe.before_step(t, net)
        move(net, t)
        if t % 3 == 0:
            expected.append(math.acos(float(before @ lab.direction(net))))
        if t % 3 == 2:
            assert probe(net) == pytest.approx(expected[-1], rel=1e-9)
    assert expected[0] != expected[1]


def test_pairs_agree_and_records_are_complete(digits):
    setting = small(weight_decay=5e-3)
    found = {
        arm: runs.train_arm(arm, 0, setting, digits, progress=False)[0]
        for arm in ("step decay", "texp", "texp++", "texp--")
    }
    base = found["step decay"]
    lengths = {name: len(values) for name, values in base.items()}
    assert lengths == dict.fromkeys(
        ("train_loss", "epoch_angle", "step_angle", "log10_lr"), 2
    ) | dict.fromkeys(("test_accuracy", "test_loss", "norm"), 3)
    for arm in ("texp", "texp++"):
        for name, rounding in (("train_loss", 1e-3), ("epoch_angle", 0.02), ("step_angle", 0.02)):
            np.testing.assert_allclose(found[arm][name], base[name], rtol=rounding, err_msg=f"{arm} {name}")
        scale = math.exp(runs.rates_of(arm, setting, EPOCH).log_scale[-1])
        assert scale < 0.98 and scale * found[arm]["norm"][-1] == pytest.approx(base["norm"][-1], rel=1e-3)
    assert found["texp--"]["step_angle"][1] > 5 * base["step_angle"][1]  # the control: no instant decay


def test_records_against_a_loop_by_hand(digits):
    setting, steps = small(), 2 * EPOCH
    records, diverged_at = runs.train_arm("step decay", 3, setting, digits, progress=False)
    assert diverged_at is None
    net = lab.preresnet(8, width=4, seed=3)
    optimizer = torch.optim.SGD(lab.trainable(net), lr=0.1, momentum=0.9, weight_decay=5e-4)
    directions, losses = [lab.direction(net)], []
    for t, (x, y) in enumerate(digits.batches(steps, 100, 3, replacement=False)):
        optimizer.param_groups[0]["lr"] = 0.1 if t < EPOCH else 0.01
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        directions.append(lab.direction(net))
    angle = [
        math.acos(min(1.0, float(directions[i] @ directions[j])))
        for i, j in ((0, 1), (12, 13), (0, 12), (12, 24))
    ]
    np.testing.assert_allclose(records["step_angle"], angle[:2], rtol=1e-6)
    np.testing.assert_allclose(records["epoch_angle"], angle[2:], rtol=1e-6)
    np.testing.assert_allclose(records["train_loss"], np.reshape(losses, (2, EPOCH)).mean(axis=1), rtol=1e-12)
    assert records["norm"][-1] == pytest.approx(lab.weight_norm(net))
    assert records["test_accuracy"][-1] == pytest.approx(lab.accuracy_on(digits.x_test, digits.y_test)(net))


def test_a_run_goes_on_from_its_checkpoint(digits, tmp_path, monkeypatch):
    setting = small()
    whole, _ = runs.train_arm("texp", 1, setting, digits, progress=False)
    step = runs.FirstStepAngle.before_step

    def stop(self, t, model):
        step(self, t, model)
        if t == EPOCH + 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.FirstStepAngle, "before_step", stop)
    with pytest.raises(KeyboardInterrupt):
        runs.train_arm("texp", 1, setting, digits, folder=tmp_path, progress=False)
    monkeypatch.setattr(runs.FirstStepAngle, "before_step", step)
    resumed, _ = runs.train_arm("texp", 1, setting, digits, folder=tmp_path, progress=False)
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values, err_msg=name)


def test_the_command_line(tmp_path, capsys):
    command = [
        "exponential_lr",
        "--size",
        "tiny",
        "--device",
        "cpu",
        "--arms",
        "step decay",
        "texp++",
        "--seeds",
        "0",
    ]
    command += ["--work", str(tmp_path / "work")]
    assert main(command) == 0
    assert capsys.readouterr().out.count("test accuracy") == 2
    found = stored.load(tmp_path / "work" / "exponential_lr.json")
    assert found.arms == ["step decay", "texp++"] and found.settings["epochs"] == 2
    accuracies = [found.final(arm, "test_accuracy")[0] for arm in found.arms]
    assert min(accuracies) > 0.4 and abs(accuracies[0] - accuracies[1]) < 0.02
    assert main(command) == 0
    output = capsys.readouterr().out
    assert output.count("stored before") == 2 and "test accuracy" not in output


def test_the_command_line_refuses_an_unknown_arm(capsys):
    with pytest.raises(SystemExit):
        main(["exponential_lr", "--size", "tiny", "--arms", "sgd"])
    assert "invalid choice: 'sgd'" in capsys.readouterr().err
