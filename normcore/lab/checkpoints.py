"""Checkpoints that survive a kill at any moment: atomic to write, checked and safe to read.

A file is a line that names the format, the SHA-256 of the rest, and the rest: tensors, numbers and names
as `torch.save` writes them, read back with `weights_only=True`, so that no file can run code.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FORMAT = b"normcore checkpoint 1\n"
DIGEST = hashlib.sha256().digest_size
KEPT = 2
"""The newest may be lost to a failing disk; the one before it is then still there."""


def save_checkpoint(folder: str | Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write a state to `folder`, whole or not at all, and keep the last two.

    The bytes go to a temporary file, are forced to the disk, and only then get their name.

    Args:
        folder: made where it is missing.
        step: the number of steps done, >= 0; it names the file.
        state: nested dicts and lists of tensors, numbers and strings.

    Returns:
        The file's path.

    Raises:
        ValueError: the step is negative.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = [save_checkpoint(folder, step, {"step": step}) for step in (1, 2, 3)]
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['step-000000002.ckpt', 'step-000000003.ckpt']

    """
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step!r}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    payload = io.BytesIO()
    torch.save(dict(state), payload)
    body = payload.getvalue()
    target = folder / f"step-{step:09d}.ckpt"
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(FORMAT + hashlib.sha256(body).digest() + body)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    _sync_folder(folder)
    _forget_old(folder, partial)
    return target


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read one checkpoint, tensors on the CPU.

    Raises:
        ValueError: the file is not a checkpoint, or not whole.

    """
    data = Path(path).read_bytes()
    if not data.startswith(FORMAT):
        raise ValueError(
            f"{Path(path).name} is not a checkpoint of normcore: it does not begin with its line"
        )
    digest, body = data[len(FORMAT) : len(FORMAT) + DIGEST], data[len(FORMAT) + DIGEST :]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError(
            f"{Path(path).name} is truncated or damaged: its contents do not match their SHA-256"
        )
    state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    return state


def newest_checkpoint(folder: str | Path, signature: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the newest checkpoint of a run, or the one before it where that one is bad.

    Args:
        folder: where `save_checkpoint` wrote.
        signature: what the state must hold under "signature" to belong to this run.

    Returns:
        The state, or None where the folder has no checkpoint.

    Raises:
        ValueError: there are checkpoints and none can be used; the message gives the reason for each.

    Warns:
        UserWarning: a bad one was passed over, and why.

    """
    reasons = list[str]()
    for path in sorted(Path(folder).glob("step-*.ckpt"), reverse=True):
        try:
            state = load_checkpoint(path)
            _check_signature(path, state, signature)
        except ValueError as error:
            reasons.append(str(error))
            continue
        if reasons:
            warnings.warn(f"resuming from {path.name}, for {'; '.join(reasons)}", stacklevel=2)
        return state
    if reasons:
        remedy = "give another folder or delete them to start anew"
        raise ValueError(
            f"checkpoint folder {str(folder)!r} has no usable file: {'; '.join(reasons)}; {remedy}"
        )
    return None


def _check_signature(path: Path, state: Mapping[str, Any], signature: Mapping[str, Any]) -> None:
    """Refuse the checkpoint of another run."""
    theirs = state.get("signature", {})
    different = [name for name, value in signature.items() if theirs.get(name) != value]
    if different:
        pairs = ", ".join(f"{name} {theirs.get(name)!r} instead of {signature[name]!r}" for name in different)
        raise ValueError(f"{path.name} belongs to another run: {pairs}")


def _sync_folder(folder: Path) -> None:
    """Force the new name itself to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _forget_old(folder: Path, partial: Path) -> None:
    """Delete all but the newest two, and what a kill has left half-written."""
    for path in sorted(folder.glob("step-*.ckpt"))[:-KEPT]:
        path.unlink(missing_ok=True)
    for path in folder.glob("step-*.partial"):
        if path != partial:
            path.unlink(missing_ok=True)
