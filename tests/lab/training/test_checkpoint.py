"""Files that are whole or absent, and that cannot run code; and what tells one run from another."""

import hashlib
import os
import types
from functools import partial

import numpy as np
import pytest
import torch
from launch import run
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, SequentialLR, StepLR

from normcore.lab import SWA, Angle, accuracy_on
from normcore.lab.training.checkpoint import fingerprint, load_checkpoint, save_checkpoint


def test_round_trip_keeps_every_bit(tmp_path):
    w = torch.randn(50, dtype=torch.float64)
    saved = {"w": w, "bf16": w.bfloat16(), "numbers": [1, 0.1, None], "group": {"lr": 0.1}}
    loaded = load_checkpoint(save_checkpoint(tmp_path / "run.pt", saved))
    assert torch.equal(loaded["w"], w) and torch.equal(loaded["bf16"], w.bfloat16())
    assert loaded["numbers"] == [1, 0.1, None] and loaded["group"] == {"lr": 0.1}


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    """torch alone passes over many, and the sums in its zip file over some; one bit in eleven is tried."""
    path = save_checkpoint(tmp_path / "run.pt", {"w": torch.tensor([1.5, -2.0]), "step": 3})
    data = path.read_bytes()
    for place in range(0, 8 * len(data), 11):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="does not match its checksum"):
            load_checkpoint(path)


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / "run.pt").mkdir()
    with pytest.raises(ValueError, match="path must be a checkpoint, got .*run.pt"):
        load_checkpoint(tmp_path / "run.pt")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "no state"])
def test_a_damaged_or_foreign_file_is_named(tmp_path, damage):
    path = save_checkpoint(tmp_path / "run.pt", {"w": torch.arange(1000.0)})
    data = bytearray(path.read_bytes())
    data[data.find(torch.arange(1000.0).numpy().tobytes()) + 2000] ^= 1
    contents = {"truncated": data[:-500], "flipped": data, "empty": b"", "foreign": b"a text"}
    if damage == "no state":
        torch.save([1, 2], path)
        path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())
    else:
        path.write_bytes(contents[damage])
    reason = "it holds a list" if damage == "no state" else "does not match its checksum"
    with pytest.raises(ValueError, match=f"path must be a checkpoint, got .*run.pt.*{reason}"):
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


def scaled(factor):
    return lambda x: factor * x


def optimizer():
    return torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)


def in_sequence(first):
    sgd = optimizer()
    return SequentialLR(sgd, [StepLR(sgd, first), CosineAnnealingLR(sgd, 9)], milestones=[4])


X, Y = torch.ones(3, 2), torch.zeros(3)
PAIRS = [
    (lambda: scaled(2), lambda: scaled(3)),
    (lambda: scaled(torch.ones(2)), lambda: scaled(torch.zeros(2))),
    (lambda: scaled(np.arange(3)), lambda: scaled(np.arange(4))),
    (lambda: lambda x: x + 1, lambda: lambda x: x + 2),
    (lambda: lambda x: x.sin(), lambda: lambda x: x.cos()),
    (lambda: lambda x, c=1: x, lambda: lambda x, c=2: x),
    (lambda: lambda x, *, c=1: x, lambda: lambda x, *, c=2: x),
    (lambda: lambda x: x in {"a", "b", "c"}, lambda: lambda x: x in {"a", "b", "d"}),
    (lambda: partial(max, 1), lambda: partial(max, 2)),
    (lambda: partial(max, key=scaled(2)), lambda: partial(max, key=scaled(3))),
    (lambda: torch.nn.CrossEntropyLoss(), lambda: torch.nn.CrossEntropyLoss(label_smoothing=0.1)),
    (lambda: torch.nn.CrossEntropyLoss(X[0]), lambda: torch.nn.CrossEntropyLoss(2 * X[0])),
    (lambda: torch.nn.MSELoss(), lambda: torch.nn.L1Loss()),
    (lambda: StepLR(optimizer(), 3), lambda: StepLR(optimizer(), 4)),
    (lambda: in_sequence(3), lambda: in_sequence(4)),
    (lambda: LambdaLR(optimizer(), lambda t: 1), lambda: LambdaLR(optimizer(), lambda t: 2)),
    (lambda: accuracy_on(X, Y), lambda: accuracy_on(X + 1, Y)),
    (lambda: SWA(X, Y), lambda: SWA(X, Y, first=1)),
    (lambda: Angle(), lambda: SWA(X, Y)),
    (lambda: X, lambda: X.double()),
    (lambda: X, lambda: X.T),
    (lambda: [1, 2], lambda: [2, 1]),
    (lambda: {"a": 1}, lambda: {"a": 2}),
    (lambda: 1, lambda: 1.0),
    (lambda: None, lambda: 0),
]


@pytest.mark.parametrize(("make", "other"), PAIRS)
def test_equal_things_have_one_fingerprint_and_others_another(make, other):
    assert fingerprint(make()) == fingerprint(make()) != fingerprint(other())


def test_a_fingerprint_says_what_it_is_of():
    assert fingerprint(torch.bfloat16) == "torch.bfloat16" and fingerprint(0.1) == "0.1"
    assert fingerprint(scaled(2)).startswith("scaled.<locals>.<lambda> ")


def test_what_holds_itself_has_an_end():
    def again(n):
        return n and again(n - 1)

    ring = [1]
    ring.append(ring)
    assert fingerprint(again) == fingerprint(again) and fingerprint(ring)
    empty = types.FunctionType(again.__code__, {}, closure=(types.CellType(),))
    assert fingerprint(empty) != fingerprint(again)


SCRIPT = """
from normcore.lab.training.checkpoint import fingerprint
letters = {*"abcdefghij"}
print(fingerprint(lambda x: x in {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}), fingerprint({"k": letters}))
print(*letters)
"""


@pytest.mark.slow
def test_a_fingerprint_is_that_of_every_process(capsys):
    exec(compile(SCRIPT, "<string>", "exec"), {})
    ours, order = capsys.readouterr().out.splitlines()
    theirs, other = run(["-c", SCRIPT], PYTHONHASHSEED="1").splitlines()
    assert order != other  # sets come in an order of each process
    assert ours == theirs != ""
