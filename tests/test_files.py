"""The old file or the new one, never a part of either."""

import os

import pytest

from normcore.files import atomic_write


def test_text_and_bytes_in_a_new_folder(tmp_path):
    assert atomic_write(tmp_path / "a" / "b", "é").read_bytes() == "é".encode()
    assert atomic_write(tmp_path / "a" / "b", b"\x00").read_bytes() == b"\x00"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = atomic_write(tmp_path / "a", "old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if call == "fsync" else type(path), call, fail)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
