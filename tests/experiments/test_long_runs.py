"""The command line of long runs, on an experiment that only counts."""

from pathlib import Path

import pytest

from normcore.experiments import stored
from normcore.experiments.long_runs import DataSetting, LongRuns, command_line, load

TINY = DataSetting("digits", train=100, test=50)


def counted(log, fails_at=None):
    """An experiment that notes what it was asked, and its command."""

    def train_arm(arm, seed, setting, data, *, folder, compile):
        if (arm, seed) == fails_at:
            raise KeyboardInterrupt
        log.append((arm, seed, str(folder), compile, len(data.y_train), len(data.y_test)))
        return {"test_accuracy": [0.5, 0.1 * seed]}, None

    sizes = {"paper": DataSetting(), "small": DataSetting("image-folder", 16), "tiny": TINY}
    return LongRuns("counted", ("a b/c", "d"), sizes, train_arm)


def tiny(tmp_path, *more):
    return ["--size", "tiny", "--device", "cpu", "--work", str(tmp_path), *more]


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
        "normcore.experiments.long_runs.load", lambda *_: pytest.fail("loaded the data again")
    )
    assert command_line(counted(log), "text", tiny(tmp_path, "--seeds", "0")) == 0


def test_files_of_the_sizes():
    runs = counted([])
    assert [str(runs.file(size)) for size in runs.settings] == [
        "book/data/counted.json",
        "book/data/counted_small.json",
        "_build/counted_tiny/counted.json",
    ]


def test_runs_of_other_settings_are_not_mixed(tmp_path):
    out = tmp_path / "counted.json"
    stored.add_run(out, {"dataset": "mnist"}, arm="d", seed=3, records={"test_accuracy": [1.0]})
    with pytest.raises(ValueError, match="settings must be those of counted.json"):
        command_line(counted([]), "text", tiny(tmp_path, "--seeds", "0", "--arms", "d"))


def test_the_data_of_a_setting(cifar10_folder):
    whole = load(DataSetting("image-folder", image_size=8, train=60), str(cifar10_folder), False, "cpu")
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
    assert "What these runs are." in capsys.readouterr().out
