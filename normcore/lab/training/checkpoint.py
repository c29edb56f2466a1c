"""Checkpoints that survive a kill at any moment: one file, written whole or not at all, safe to read."""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from normcore.equivalence.schedule import EquivalentSchedule
from normcore.files import atomic_write
from normcore.lab.training.history import Recorder
from normcore.lab.training.processes import from_main, is_main

FILE = "run.pt"


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> Path:
    """Write a state, whole or not at all.

    Args:
        path: of the file.
        state: nested dicts and lists of tensors, numbers and strings.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_checkpoint(Path(folder, "run.pt"), {"step": 3})
        ...     load_checkpoint(path)
        {'step': 3}

    """
    payload = io.BytesIO()
    torch.save(dict(state), payload)
    return atomic_write(path, payload.getvalue())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a state, tensors on the CPU; no file can run code.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no checkpoint, or damaged.

    """
    try:
        with zipfile.ZipFile(path) as parts:  # torch itself passes over a flipped bit
            if parts.testzip() is not None:
                raise ValueError(f"{parts.testzip()} does not match its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch, zipfile and pickle each have their own
        raise ValueError(
            f"path must be a checkpoint, got {str(path)!r}, which cannot be read: {error}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(
            f"path must be a checkpoint, got {str(path)!r}, which holds a {type(state).__name__}"
        )
    return state


class RunState:
    """Saves and restores everything a run's future depends on.

    Model, optimizer, scheduler, ExpLR, records, probes and torch's random generators. A run is recognised by its
    starting weights, its options and its first batch: a folder of another run is refused, not continued.
    """

    def __init__(
        self,
        folder: str | Path,
        parts: Mapping[str, Any],
        recorder: Recorder,
        first_batch: tuple[Tensor, Tensor] | None,
        schedule: EquivalentSchedule | None,
    ) -> None:
        """Take the fingerprint of the run, before its first step."""
        self.folder = Path(folder)
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.recorder = recorder
        rates = None if schedule is None else _digest([torch.from_numpy(schedule.log_lr.copy())])
        own = {**_signature(self.parts, recorder, first_batch), "schedule": rates}
        self.signature = from_main(own)  # each process sees its own part of the first batch

    def save(self, step: int, diverged_at: int | None = None) -> None:
        """Write a checkpoint after `step` steps; the main process does."""
        if not is_main():
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {
            "signature": self.signature,
            "step": step,
            "diverged_at": diverged_at,
            "recorder": self.recorder.state_dict(),
            "generators": _generators(),
        }
        save_checkpoint(self.folder / FILE, state)

    def restore(self) -> tuple[int, int | None]:
        """Go on from the checkpoint, if there is one: the steps done, and where the run diverged."""
        path = self.folder / FILE
        if not path.exists():
            return 0, None
        state = load_checkpoint(path)
        self._check(state.get("signature", {}))
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.recorder.load_state_dict(state["recorder"])
        _set_generators(state["generators"])
        return state["step"], state["diverged_at"]

    def _check(self, theirs: Mapping[str, Any]) -> None:
        """Refuse the checkpoint of another run."""
        different = [name for name, value in self.signature.items() if theirs.get(name) != value]
        if different:
            pairs = ", ".join(f"{n} {theirs.get(n)!r} instead of {self.signature[n]!r}" for n in different)
            raise ValueError(
                f"checkpoint must be a folder of this run, got {str(self.folder)!r}, which belongs to another: {pairs}; "
                "give another folder, or delete it to start anew"
            )


def _signature(
    parts: Mapping[str, Any], recorder: Recorder, first_batch: tuple[Tensor, Tensor] | None
) -> dict[str, Any]:
    """What tells this run from others."""
    model, optimizer = parts["model"], parts["optimizer"]
    return {
        "parts": sorted(parts),
        "starting weights": _digest(list(model.state_dict().values())),
        "first batch": _digest(list(first_batch or ())),
        "optimizer": type(optimizer).__name__,
        "options": _options(optimizer),
        "probes": sorted(recorder.probes),
    }


def _options(optimizer: Optimizer) -> list[str]:
    """The hyper-parameters of each group as text, learning rate and weight decay among them."""
    return [
        ", ".join(f"{name}={value!r}" for name, value in sorted(group.items()) if name != "params")
        for group in optimizer.param_groups
    ]


def _digest(tensors: list[Tensor]) -> str:
    """A short fingerprint of the bytes of some tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous()
        digest.update(repr((array.dtype, tuple(array.shape))).encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _generators() -> dict[str, Any]:
    """The states of torch's generators: dropout and the like draw from them."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _set_generators(states: Mapping[str, Any]) -> None:
    """Put the generators where they were."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
