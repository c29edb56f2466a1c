"""Checkpoints that survive a kill at any moment: one file, written whole or not at all, safe to read."""

import hashlib
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from normcore.checks import require_type, understood
from normcore.files import atomic_write
from normcore.lab.training.probes import Recorder
from normcore.lab.training.processes import from_main, is_main

FILE = "run.pt"
DIGEST = 32
"""Bytes of SHA-256 behind what torch writes."""
OLD = 3600.0
"""Seconds after which nobody is still writing a file."""


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> Path:
    """Write a state, nested dicts and lists of tensors, numbers and strings, whole or not at all; gives the path.

    Raises:
        OSError: it cannot be written (a full disk, say); what was there before is still there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_checkpoint(Path(folder, "run.pt"), {"step": 3})
        ...     load_checkpoint(path)
        {'step': 3}

    """
    require_type("path", path, str | Path, "a path")
    require_type("state", state, Mapping, "a dict")
    file = io.BytesIO()
    torch.save(dict(state), file)
    return atomic_write(path, file.getvalue() + hashlib.sha256(file.getvalue()).digest())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a state, tensors on the CPU; no file can run code.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no checkpoint, or damaged by as much as a bit.

    """
    require_type("path", path, str | Path, "a path")
    try:
        content = Path(path).read_bytes()
        content, digest = content[:-DIGEST], content[-DIGEST:]
        # torch reads past flipped bits, and the sums in its own zip file do not see all of them
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("it does not match its checksum")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    except FileNotFoundError:
        raise
    except Exception as error:  # torch and pickle each have their own
        raise ValueError(f"path must be a checkpoint, got {str(path)!r}: {error}") from error


def remembered(path: Path | None, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read the state that a file keeps, or compute it, where there is none or it is damaged, and keep it."""
    if path is None:
        return compute()
    try:
        return load_checkpoint(path)
    except (FileNotFoundError, ValueError):
        save_checkpoint(path, state := compute())
        return state


class RunState:
    """Saves and restores everything a run's future depends on.

    Model, optimizer, scheduler, ExpLR, records, probes and torch's random generators. A run is recognised by its
    starting weights, its options, the code of what it calls and some of its batches: a folder of another run is
    refused, not continued.
    """

    def __init__(
        self,
        folder: str | Path,
        parts: Mapping[str, Any],
        recorder: Recorder,
        batches: Sequence[tuple[Tensor, Tensor]],
        others: Mapping[str, Any],
    ) -> None:
        """Take the fingerprint of the run, before its first step; `others` tells it from runs of the same parts."""
        self.folder, self.recorder, self.steps = Path(folder), recorder, len(batches)
        self.parts = {name: part for name, part in parts.items() if part is not None}
        if is_main():  # better now than at the first save
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(f"checkpoint must be a folder that can be written, got {str(folder)!r}")
            for part in self.folder.glob(f".{FILE}.*.part"):  # of processes that were killed as they saved
                if time.time() - part.stat().st_mtime > OLD:
                    part.unlink(missing_ok=True)
        model, optimizer = parts["model"], parts["optimizer"]
        own = {
            "parts": repr(sorted(self.parts)),
            "starting weights": fingerprint(list(model.state_dict().values())),
            "optimizer": type(optimizer).__name__,
            "scheduler": fingerprint(parts["scheduler"]),
            "probes": repr({name: fingerprint(probe) for name, probe in recorder.probes.items()}),
        }
        for i, group in enumerate(optimizer.param_groups):
            own |= {f"{name} of group {i}": repr(group[name]) for name in sorted(group) if name != "params"}
        own |= {name: fingerprint(value) for name, value in others.items()}
        some = [t for t in (0, *(2**k for k in range(40))) if t < self.steps]
        own |= {f"batch {t}": fingerprint(batches[t]) for t in some}
        self.signature = from_main(own)  # each process sees its own part of a batch

    def save(self, step: int) -> None:
        """Write a checkpoint after `step` steps; the main process does."""
        if not is_main():
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"signature": self.signature, "step": step, "recorder": self.recorder.state_dict()}
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        # dropout and the like draw from them
        state["generators"] = {"cpu": torch.get_rng_state(), "cuda": gpus}
        save_checkpoint(self.folder / FILE, state)

    def restore(self) -> int:
        """Go on from the checkpoint, if there is one: the steps done."""
        path = self.folder / FILE
        if not path.exists():
            return 0
        state = load_checkpoint(path)
        self._check(state.get("signature", {}))
        if state["step"] > self.steps:
            raise ValueError(f"batches must hold the {state['step']} steps that are done, got {self.steps}")
        with understood(state, f"that of a run, in {str(path)!r}"):
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.recorder.load_state_dict(state["recorder"])
            torch.set_rng_state(state["generators"]["cpu"])
            for device, generator in enumerate(state["generators"]["cuda"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(generator, device)
        return int(state["step"])

    def _check(self, theirs: Mapping[str, Any]) -> None:
        """Refuse the checkpoint of another run; one of other length has fewer batches to compare."""
        unknown = {name: value for name, value in self.signature.items() if name.startswith("batch ")}
        theirs = {**unknown, **theirs}
        different = [name for name, value in self.signature.items() if theirs.get(name) != value]
        if different:
            pairs = ", ".join(f"{n} {theirs.get(n)} instead of {self.signature[n]}" for n in different)
            other = f"{str(self.folder)!r}, which belongs to another: {pairs}"
            what_to_do = "give another folder, or delete it to start anew"
            raise ValueError(f"checkpoint must be a folder of this run, got {other}; {what_to_do}")


def fingerprint(thing: Any) -> str:
    """Name a thing by its class or function, and by a hash of its numbers, tensors and code.

    Functions are told apart by their code and by what they hold (defaults, closures, the arguments of a `partial`), other
    things that can be called and schedulers by class and attributes. Plain values are named by themselves, all else by
    its class alone.
    """
    told, name = _told(thing), getattr(thing, "__qualname__", type(thing).__name__)
    return told if isinstance(told, str) else f"{name} {hashlib.sha256(repr(told).encode()).hexdigest()[:12]}"


def _told(thing: Any, depth: int = 8) -> Any:
    """Everything that a fingerprint sees, as nested lists of plain values; `depth` ends what holds itself."""

    def all_of(values: Any) -> list[Any]:
        return [_told(value, depth - 1) for value in values] if depth else []

    match thing:
        case Tensor():
            array = thing.detach().cpu().contiguous()
            content = array.reshape(-1).view(torch.uint8).numpy()
            return [str(array.dtype), *array.shape, hashlib.sha256(content.tobytes()).hexdigest()]
        case np.ndarray() | np.generic() if not thing.dtype.hasobject:
            return [str(thing.dtype), *thing.shape, hashlib.sha256(thing.tobytes()).hexdigest()]
        case None | bool() | int() | float() | complex() | str() | bytes() | torch.dtype():
            return repr(thing)
        case set() | frozenset():  # whose order changes from process to process
            return sorted(map(repr, all_of(thing)))
        case Mapping():
            return all_of(sorted(thing.items(), key=lambda item: str(item[0])))
        case list() | tuple() | range():
            return all_of(thing)
        case partial():
            return all_of((thing.func, thing.args, thing.keywords))
        case MethodType():
            return all_of((thing.__func__, type(thing.__self__).__qualname__))
        case FunctionType():
            held = [cell.cell_contents for cell in thing.__closure__ or () if cell != CellType()]
            code = thing.__qualname__, thing.__code__
            return all_of((*code, thing.__defaults__, thing.__kwdefaults__, held))
        case CodeType():
            return all_of((thing.co_code, thing.co_names, thing.co_consts))
        case LRScheduler():
            return all_of((type(thing).__qualname__, {**vars(thing), "optimizer": None}))
        case nn.Module():
            settings = {name: value for name, value in vars(thing).items() if not name.startswith("_")}
            return all_of((type(thing).__qualname__, settings, thing.state_dict()))
        case Callable() if hasattr(thing, "__dict__") and not isinstance(thing, type):
            return all_of((type(thing).__qualname__, vars(thing)))
    return getattr(thing, "__qualname__", type(thing).__qualname__)
