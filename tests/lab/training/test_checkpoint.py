"""Files that are whole or absent, and that cannot run code."""

import os

import pytest
import torch

from normcore.lab.training.checkpoint import load_checkpoint, save_checkpoint


def test_round_trip_keeps_every_bit(tmp_path):
    w = torch.randn(50, dtype=torch.float64)
    saved = {"w": w, "bf16": w.bfloat16(), "numbers": [1, 0.1, None], "group": {"lr": 0.1}}
    loaded = load_checkpoint(save_checkpoint(tmp_path / "run.pt", saved))
    assert torch.equal(loaded["w"], w) and torch.equal(loaded["bf16"], w.bfloat16())
    assert loaded["numbers"] == [1, 0.1, None] and loaded["group"] == {"lr": 0.1}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "no state"])
def test_a_damaged_or_foreign_file_is_named(tmp_path, damage):
    path = save_checkpoint(tmp_path / "run.pt", {"w": torch.arange(1000.0)})
    data = bytearray(path.read_bytes())
    data[data.find(torch.arange(1000.0).numpy().tobytes()) + 2000] ^= 1
    contents = {"truncated": data[:-1], "flipped": data, "empty": b"", "foreign": b"a text"}
    if damage == "no state":
        torch.save([1, 2], path)
    else:
        path.write_bytes(contents[damage])
    with pytest.raises(ValueError, match="path must be a checkpoint, got .*run.pt"):
        load_checkpoint(path)


def test_nothing_in_a_file_is_executed(tmp_path):
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    with pytest.raises(ValueError, match="Weights only load failed"):
        load_checkpoint(save_checkpoint(tmp_path / "run.pt", {"payload": Payload()}))
    assert not ran.exists()


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "run.pt")
