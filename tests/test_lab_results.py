"""One file a cell: whole or not at all, and never trusted blindly."""

import io
import json
import math
import os
import zipfile

import numpy as np
import pytest
import torch

from normcore.lab.results import CellResult, Store, as_arrays, cell_key, diverged, plain

CELL = {"lr": 0.1, "seed": 0, "kind": "a", "rates": [0.1, 0.2], "none": None}
RESULT = CellResult(
    CELL, "done", {"loss": np.arange(3.0), "n": np.array(2), "file": np.array([True])}, None, 0.5
)


def test_a_result_comes_back_as_it_was(tmp_path):
    store = Store(tmp_path / "new" / "folder", "experiment")
    store.save(RESULT)
    found = Store(tmp_path / "new" / "folder", "experiment").load(dict(reversed(CELL.items())))
    assert (found.cell, found.status, found.error, found.seconds) == (CELL, "done", None, 0.5)
    assert set(found.results) == {"loss", "n", "file"}
    for name, array in RESULT.results.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    lost = CellResult({"lr": 1.0}, "lost", {}, "its process died: é\n", math.nan)
    store.save(lost)
    assert store.load({"lr": 1.0}).error == "its process died: é\n" and math.isnan(
        store.load({"lr": 1.0}).seconds
    )
    assert sorted(path.suffix for path in store.folder.iterdir()) == [".npz", ".npz"]


def test_cells_and_experiments_have_files_of_their_own(tmp_path):
    store = Store(tmp_path, "one")
    store.save(RESULT)
    assert Store(tmp_path, "another").load(CELL) is None
    assert store.load({**CELL, "lr": 0.2}) is None
    assert cell_key({"lr": 0.1}) == cell_key({"lr": np.float64(0.1)}) != cell_key({"lr": np.float32(0.1)})
    assert (
        cell_key({"a": (1, 2)}) == cell_key({"a": np.array([1, 2])}) == cell_key({"a": torch.tensor([1, 2])})
    )


@pytest.mark.parametrize("end", [0, 1, 30, 200, -200, -30, -1])
def test_a_truncated_file_is_computed_anew(tmp_path, end):
    store = Store(tmp_path, "experiment")
    store.save(RESULT)
    data = store.path(CELL).read_bytes()
    store.path(CELL).write_bytes(data[:end])
    with pytest.warns(UserWarning, match="truncated or foreign and is computed anew"):
        assert store.load(CELL) is None


def test_a_flipped_bit_is_noticed(tmp_path):
    store = Store(tmp_path, "experiment")
    store.save(CellResult(CELL, "done", {"loss": np.full(100, 1.5)}))
    data = bytearray(store.path(CELL).read_bytes())
    place = data.index(np.full(100, 1.5).tobytes()) + 77
    data[place] ^= 1
    store.path(CELL).write_bytes(bytes(data))
    with pytest.warns(UserWarning, match=r"computed anew \(BadZipFile: Bad CRC-32"):
        assert store.load(CELL) is None


def record_of(path, **changes):
    """The bytes of a cell's file with some fields of its record changed."""
    with np.load(path) as archive:
        arrays = dict(archive)
    record = {**json.loads(arrays["record"].tobytes()), **changes}
    arrays["record"] = np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)
    body = io.BytesIO()
    np.savez(body, **arrays)
    return body.getvalue()


def test_a_foreign_file_is_computed_anew(tmp_path):
    store = Store(tmp_path, "experiment")
    store.save(RESULT)
    path, other = store.path(CELL), {**CELL, "lr": 0.3}
    plain_npz, pickled, text_zip = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(plain_npz, loss=np.arange(3))
    np.savez(pickled, record=np.array([{"a": 1}], dtype=object))
    with zipfile.ZipFile(text_zip, "w") as archive:
        archive.writestr("record.npy", "text")
    foreign = [
        path.read_bytes(),  # of another cell
        plain_npz.getvalue(),
        pickled.getvalue(),
        text_zip.getvalue(),
        b"text",
        record_of(path, key=store.path(other).stem, format="another 1"),
        record_of(path, key=store.path(other).stem, status="unheard of"),
    ]
    for data in foreign:
        store.path(other).write_bytes(data)
        with pytest.warns(UserWarning, match="computed anew"):
            assert store.load(other) is None
    store.path(other).write_bytes(record_of(path, key=store.path(other).stem))  # control: this one is right
    assert store.load(other)["n"] == 2


def test_a_kill_before_the_rename_leaves_no_file(tmp_path, monkeypatch):
    store = Store(tmp_path, "experiment")
    order = []
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("fsync"))
    monkeypatch.setattr("pathlib.Path.replace", lambda *a: order.append("rename") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.save(RESULT)
    assert order == ["fsync", "rename"] and store.load(CELL) is None
    monkeypatch.undo()
    store.save(RESULT)
    assert store.load(CELL) is not None


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    store = Store(tmp_path, "experiment")
    store.path(CELL).mkdir()
    with pytest.raises(IsADirectoryError):
        store.load(CELL)


def test_outcomes_become_arrays():
    half = torch.tensor([1.5], dtype=torch.bfloat16, requires_grad=True)
    arrays = as_arrays(
        {"a": 1, "b": [1.0, 2.0], "c": torch.ones(2, dtype=torch.float64), "d": None, "h": half}
    )
    assert {name: array.dtype.kind for name, array in arrays.items()} == {
        "a": "i",
        "b": "f",
        "c": "f",
        "d": "f",
        "h": "f",
    }
    assert np.isnan(arrays["d"]) and arrays["h"].tolist() == [1.5] and arrays["c"].dtype == np.float64
    source = np.zeros(2)
    kept = as_arrays({"a": source})["a"]
    source += 1
    assert kept.tolist() == [0.0, 0.0]
    with pytest.raises(TypeError, match="experiment must return a dict, got list"):
        as_arrays([1])
    for bad in ({"a": "text"}, {"a": object()}, {1: 2}):
        with pytest.raises(TypeError, match="names with numbers or arrays of them, got"):
            as_arrays(bad)


def test_what_counts_as_diverged():
    cases = {None: False, math.nan: False, 0: True, 7: True}
    assert {step: diverged(as_arrays({"diverged_at": step})) for step in cases} == cases
    assert not diverged({})


def test_settings_must_be_plain():
    assert plain((1, np.float64(0.5), [torch.tensor(2)], None, "x")) == [1, 0.5, [2], None, "x"]
    with pytest.raises(
        TypeError, match="cell values must be numbers, strings or lists of them, got <function"
    ):
        cell_key({"f": plain})


def test_a_missing_result_is_named():
    with pytest.raises(KeyError, match=r"no result named 'x'; it has \['file', 'loss', 'n'\]"):
        RESULT["x"]
    with pytest.raises(KeyError, match="no result named 'x'; the cell lost"):
        CellResult(CELL, "lost")["x"]
