"""The command line of long runs, on an experiment that only counts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from normcore import lab
from normcore.experiments import stored
from normcore.experiments.__main__ import main
from normcore.experiments.stored import LongRuns, Setting, command_line, dataset_of, fit, residual_net

TINY = Setting("digits", train=100, test=50)


def counted(log, fails_at=None):
    """An experiment that notes what it was asked, and its command."""

    def train_arm(arm, seed, setting, data, *, folder, compile):
        if (arm, seed) == fails_at:
            raise KeyboardInterrupt
        log.append((arm, seed, str(folder), compile, len(data.y_train), len(data.y_test)))
        return {"test_accuracy": [0.5, 0.1 * seed]}, None

    sizes = {"paper": Setting(), "small": Setting("image-folder", 16), "tiny": TINY}
    return LongRuns("counted", sizes, ("a b/c", "d"), train_arm)


def tiny(tmp_path, *more):
    return ["--size", "tiny", "--device", "cpu", "--work", str(tmp_path), *more]


def test_a_size_may_have_arms_of_its_own(tmp_path, capsys):
    log = []
    runs = replace(counted(log), own_arms={"tiny": ("e",)})
    assert command_line(runs, "text", tiny(tmp_path, "--seeds", "0")) == 0
    assert command_line(runs, "text", tiny(tmp_path, "--seeds", "1", "--arms", "d")) == 0
    assert [entry[:2] for entry in log] == [("e", 0), ("d", 1)]
    with pytest.raises(SystemExit):
        command_line(runs, "text", tiny(tmp_path, "--arms", "f"))


def test_every_arm_and_seed_is_run_once_and_stored(tmp_path, capsys):
    log = []
    assert command_line(counted(log), "text", tiny(tmp_path, "--seeds", "0", "7")) == 0
    assert [entry[:2] for entry in log] == [("a b/c", 0), ("d", 0), ("a b/c", 7), ("d", 7)]
    assert [Path(entry[2]).name for entry in log] == ["a-bbyc-0", "d-0", "a-bbyc-7", "d-7"]
    assert {entry[3:] for entry in log} == {(False, 100, 50)}
    assert "d, seed 7: test accuracy 0.7000" in capsys.readouterr().out
    found = stored.load(tmp_path / "counted.json")
    assert found.seeds("d") == [0, 7] and found.settings == vars(TINY)
    assert command_line(counted(log), "text", tiny(tmp_path, "--seeds", "7", "8", "--arms", "d")) == 0
    assert [entry[:2] for entry in log[4:]] == [("d", 8)]
    assert "stored before: d, seed 7" in capsys.readouterr().out


def test_what_is_finished_survives_an_interruption(tmp_path):
    log = []
    with pytest.raises(KeyboardInterrupt):
        command_line(counted(log, fails_at=("d", 0)), "text", tiny(tmp_path, "--seeds", "0", "1"))
    assert stored.load(tmp_path / "counted.json").arms == ["a b/c"]
    command_line(counted(log), "text", tiny(tmp_path, "--seeds", "0"))
    assert [entry[:2] for entry in log] == [("a b/c", 0), ("d", 0)]


def test_nothing_is_loaded_when_all_is_stored(tmp_path, monkeypatch):
    log = []
    command_line(counted(log), "text", tiny(tmp_path, "--seeds", "0"))
    monkeypatch.setattr(
        "normcore.experiments.stored.dataset_of", lambda *_: pytest.fail("loaded the data again")
    )
    assert command_line(counted(log), "text", tiny(tmp_path, "--seeds", "0")) == 0


def test_files_of_the_sizes():
    runs = counted([])
    names = ["book/data/counted.json", "book/data/counted_small.json"]
    assert [str(runs.file(size)) for size in ("paper", "small")] == names


def test_runs_of_other_settings_are_not_mixed(tmp_path):
    out = tmp_path / "counted.json"
    stored.add_run(out, {"dataset": "mnist"}, arm="d", seed=3, records={"test_accuracy": [1.0]})
    with pytest.raises(ValueError, match="settings must be those of counted.json"):
        command_line(counted([]), "text", tiny(tmp_path, "--seeds", "0", "--arms", "d"))


def test_the_data_of_a_setting(cifar10_folder):
    whole = dataset_of(Setting("image-folder", image_size=8, train=60), str(cifar10_folder), False, "cpu")
    assert whole.pixels_train.shape == (60, 3, 8, 8) and len(whole.y_test) == 200


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--size", "huge"], "invalid choice: 'huge'"),
        (["--arms", "e"], "invalid choice: 'e'"),
        (["--seeds", "x"], "invalid int value: 'x'"),
    ],
)
def test_wrong_arguments(wrong, message, capsys):
    with pytest.raises(SystemExit):
        command_line(counted([]), "text", wrong)
    assert message in capsys.readouterr().err


def test_help_says_what_it_is(capsys):
    with pytest.raises(SystemExit):
        command_line(counted([]), "What these runs are.", ["--help"])
    text = capsys.readouterr().out
    assert "What these runs are." in text and "normcore.experiments counted --size tiny" in text


def test_one_command_for_all(capsys):
    assert main([]) == main(["texp"]) == 2 and main(["-h"]) == 0
    assert capsys.readouterr().out.count("{exponential_lr,intrinsic_lr,catapult}") == 3
    with pytest.raises(SystemExit):
        main(["catapult", "--help"])
    assert "Lewkowycz" in capsys.readouterr().out


def test_a_fit_reads_the_test_set_and_saves(tmp_path):
    data = lab.load_dataset("digits").subset(200, 60)
    net = residual_net(Setting("digits", depth=8, width=4), data, seed=3)
    optimizer, loss = torch.optim.SGD(lab.trainable(net), lr=0.1), torch.nn.MultiMarginLoss()
    options = {"every": 3, "probes": {"norm": lab.weight_norm}, "loss_fn": loss, "folder": tmp_path}
    history = fit(net, optimizer, data.batches(7, 32), data, **options)
    assert history.step.tolist() == [0, 3, 6, 7] and (tmp_path / "run.pt").exists()
    assert history["test_accuracy"][-1] == lab.accuracy_on(data.x_test, data.y_test)(net)
    assert history["test_loss"][-1] == lab.loss_on(data.x_test, data.y_test, loss)(net)
    assert np.isfinite(history["norm"]).all()
    same = lab.preresnet(8, width=4, seed=3).state_dict()
    start = residual_net(Setting("digits", depth=8, width=4), data, seed=3).state_dict()
    assert all(torch.equal(same[name], start[name]) for name in same)
