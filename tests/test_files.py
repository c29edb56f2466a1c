"""The old file or the new one, never a part of either."""

import os

import pytest

from normcore.files import atomic_write


def test_text_and_bytes_in_a_new_folder(tmp_path):
    assert atomic_write(tmp_path / "a" / "b", "é").read_bytes() == "é".encode()
    assert atomic_write(tmp_path / "a" / "b", b"\x00").read_bytes() == b"\x00"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(30, "Read-only file system"),
        PermissionError(13, "Permission denied"),
        KeyboardInterrupt("Ctrl-C"),
    ],
    ids=lambda error: str(error)[:9],
)
def test_a_disk_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call, error):
    path = atomic_write(tmp_path / "a", "old")

    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else type(path), call, fail)
        with pytest.raises(type(error)) as caught:
            atomic_write(path, "new")
    assert caught.value is error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    assert atomic_write(path, "new").read_text() == "new"


def test_a_file_that_the_system_cuts_short_is_no_file(tmp_path):
    """A limit on the size of files, which the kernel enforces in the middle of a write."""
    resource = pytest.importorskip("resource")
    path, (soft, hard) = atomic_write(tmp_path / "a", "old"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            atomic_write(path, b"x" * 4097)
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
        assert len(atomic_write(path, b"x" * 4096).read_bytes()) == 4096  # the control
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
