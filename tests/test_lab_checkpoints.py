"""Files that are whole or absent, and that cannot run code."""

import os
import pickle

import pytest
import torch

from normcore.lab.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint

RUN = {"starting weights": "abc"}


def state(step, run=RUN):
    """A small state."""
    return {"signature": run, "step": step, "w": torch.full((100,), float(step))}


def test_round_trip_keeps_every_bit(tmp_path):
    w = torch.randn(50, dtype=torch.float64)
    saved = {"w": w, "bf16": w.bfloat16(), "numbers": [1, 0.1, None], "group": {"lr": 0.1}}
    loaded = load_checkpoint(save_checkpoint(tmp_path, 7, saved))
    assert torch.equal(loaded["w"], w) and torch.equal(loaded["bf16"], w.bfloat16())
    assert loaded["numbers"] == [1, 0.1, None] and loaded["group"] == {"lr": 0.1}


def test_the_last_two_are_kept_and_half_written_files_go(tmp_path):
    (tmp_path / "step-000000002.partial").write_bytes(b"what a kill left")
    for step in (3, 1, 20, 100):  # by number of steps, whatever the order
        save_checkpoint(tmp_path, step, state(step))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-000000020.ckpt", "step-000000100.ckpt"]
    assert newest_checkpoint(tmp_path, RUN)["step"] == 100
    assert newest_checkpoint(tmp_path / "missing", RUN) is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_file_is_named_and_passed_over(tmp_path, damage):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step))
    path = tmp_path / "step-000000002.ckpt"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle] ^= 1
    path.write_bytes({"truncated": data[:-1], "flipped": data, "empty": b""}[damage])
    with pytest.warns(UserWarning, match=r"resuming from step-000000001.ckpt, for step-000000002.ckpt is"):
        assert newest_checkpoint(tmp_path, RUN)["step"] == 1


def test_another_run_is_refused_and_not_overwritten(tmp_path):
    save_checkpoint(tmp_path, 5, state(5))
    other = {"starting weights": "xyz"}
    with pytest.raises(ValueError, match="belongs to another run: starting weights 'abc' instead of 'xyz'"):
        newest_checkpoint(tmp_path, other)
    save_checkpoint(tmp_path, 6, state(6, other))
    assert newest_checkpoint(tmp_path, other)["step"] == 6
    with pytest.warns(UserWarning, match="step-000000006.ckpt belongs to another run"):
        assert newest_checkpoint(tmp_path, RUN)["step"] == 5


def test_nothing_in_a_file_is_executed(tmp_path):
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_checkpoint(save_checkpoint(tmp_path, 1, {"payload": Payload()}))
    assert not ran.exists()
    foreign = tmp_path / "step-000000009.ckpt"
    torch.save({"w": torch.ones(1)}, foreign)
    with pytest.raises(ValueError, match="is not a checkpoint of normcore"):
        load_checkpoint(foreign)


def test_a_failing_write_leaves_the_old_ones(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1))

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(tmp_path, 2, state(2))
    assert newest_checkpoint(tmp_path, RUN)["step"] == 1


def test_bad_step(tmp_path):
    with pytest.raises(ValueError, match="step must be >= 0, got -1"):
        save_checkpoint(tmp_path, -1, {})
