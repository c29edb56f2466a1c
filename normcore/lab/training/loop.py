"""One training loop for all experiments."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from tqdm import tqdm

from normcore.equivalence.optimizer import ExpLR
from normcore.equivalence.schedule import EquivalentSchedule, follow
from normcore.lab.training.checkpoint import RunState
from normcore.lab.training.history import History, Probe, Recorder
from normcore.lab.training.processes import is_main, mean_over_ranks

Batches = Sequence[tuple[Tensor, Tensor]]


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    schedule: EquivalentSchedule | None = None,
    before_step: Callable[[int], None] | None = None,
    scheduler: Any = None,
    exp_lr: ExpLR | None = None,
    probes: Mapping[str, Probe] | None = None,
    every: int = 1,
    autocast: torch.dtype | None = None,
    channels_last: bool = False,
    compile: bool | str = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 500,
    progress: bool | None = None,
) -> History:
    """Train on the given batches, one step each, and record probes.

    Under `torchrun` it is the same call: wrap the model and share out the batches with
    `normcore.lab.training.processes`. Losses are then means over the processes, and the first one saves.

    With `checkpoint` the run saves itself as it goes, and the same call, made again after a kill at any
    moment, goes on from the last save to the same bits: model, optimizer, scheduler, ExpLR, records and
    torch's generators are all in it. A finished run returns its record at once, and a longer list of batches
    extends it (a schedule is part of the run and must stay the same). Checkpoints of sharded (FSDP) models are not written here.

    Args:
        model: trained in place, in the mode it is in.
        optimizer: any torch optimizer over its parameters.
        batches: (x, y) for step 0, 1, ..., made when asked for; `[(x, y)] * steps` is full batch.
        loss_fn: of (model(x), y).
        schedule: an `EquivalentSchedule` that the optimizer follows, step by step.
        before_step: called with t after the backward pass and before the optimizer's step.
        scheduler: a torch scheduler, stepped after each step.
        exp_lr: the `ExpLR` attached to the optimizer; only checkpoints need to know it.
        probes: name -> function of the model, read before steps 0, every, ... and after the last.
            One with `state_dict` and `load_state_dict` is saved too.
        every: steps between readings, >= 1.
        autocast: the dtype of mixed precision, torch.bfloat16 say; the weights keep theirs.
        channels_last: the memory format in which convolutions on GPUs are fastest.
        compile: True, or a mode of `torch.compile`; "reduce-overhead" replays CUDA graphs.
        checkpoint: folder for this run alone.
        checkpoint_every: steps between saves, >= 1; the end is always saved.
        progress: whether to show a bar; by default on a terminal, for runs longer than 2 seconds.

    Returns:
        History. A non-finite loss ends the run and is recorded as `diverged_at`.

    Raises:
        ValueError: every or checkpoint_every is below 1, the schedule is shorter than the batches, or the
            checkpoint folder holds only files that are damaged or belong to another run.

    Example:
        >>> from normcore.lab import load_dataset, mlp, trainable, weight_norm
        >>> net = mlp((64, 16, 10))
        >>> batches = load_dataset("digits").batches(30, 32)
        >>> optimizer = torch.optim.SGD(trainable(net), lr=0.1)
        >>> history = train(net, optimizer, batches, probes={"norm": weight_norm})
        >>> len(history.loss), len(history["norm"]), bool(history["norm"][-1] > history["norm"][0])
        (30, 31, True)

    """
    _check(len(batches), every, checkpoint_every, schedule)
    recorder, start, diverged_at = Recorder(model, probes or {}), 0, None
    forward = _forward(model, channels_last, compile)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "exp_lr": exp_lr}
    saved = None if checkpoint is None else RunState(checkpoint, parts, recorder, _first(batches), schedule)
    if saved is not None:
        start, diverged_at = saved.restore()
    for t in _bar(range(start, len(batches) if diverged_at is None else start), progress):
        if t % every == 0:
            recorder.read(t)
        if saved is not None and t > start and t % checkpoint_every == 0:
            saved.save(t)
        x, y = batches[t]
        optimizer.zero_grad()
        with _precision(x, autocast):
            loss = loss_fn(forward(_as_trained(x, channels_last)), y)
        recorder.losses.append(float(mean_over_ranks(loss.detach())))
        if not math.isfinite(recorder.losses[-1]):
            diverged_at = t
            break
        loss.backward()
        if schedule is not None:
            follow(optimizer, schedule, t)
        if before_step is not None:
            before_step(t)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    end = len(batches) if diverged_at is None else diverged_at
    if saved is not None and start < end:
        saved.save(end, diverged_at)
    recorder.read(end)
    return recorder.history(diverged_at)


def _check(steps: int, every: int, checkpoint_every: int, schedule: EquivalentSchedule | None) -> None:
    for name, value in (("every", every), ("checkpoint_every", checkpoint_every)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value!r}")
    if schedule is not None and schedule.steps < steps:
        need = f"at least {steps} steps, one for each batch"
        raise ValueError(f"schedule must have {need}, got {schedule.steps}")


def _first(batches: Batches) -> tuple[Tensor, Tensor] | None:
    """The first batch, where there is one."""
    return batches[0] if len(batches) else None


def _forward(model: nn.Module, channels_last: bool, compile: bool | str) -> Callable[[Tensor], Tensor]:
    """The forward pass in the chosen memory format, compiled or not."""
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if compile is False:
        return model
    forward: Callable[[Tensor], Tensor] = torch.compile(model, mode=None if compile is True else compile)
    return forward


def _as_trained(x: Tensor, channels_last: bool) -> Tensor:
    """The inputs in the chosen memory format; only images have one."""
    return x.contiguous(memory_format=torch.channels_last) if channels_last and x.ndim == 4 else x


def _precision(x: Tensor, autocast: torch.dtype | None) -> AbstractContextManager[None]:
    """Mixed precision on the device of the inputs, or whatever the caller has set."""
    return nullcontext() if autocast is None else torch.autocast(x.device.type, dtype=autocast)


def _bar(steps: range, progress: bool | None) -> Iterable[int]:
    """The steps behind a progress bar that stays silent in notebooks, short runs and helper processes."""
    shown = sys.stderr.isatty() if progress is None else progress
    bar: Iterable[int] = tqdm(
        steps,
        initial=steps.start,
        total=steps.stop,
        disable=not (shown and is_main()),
        leave=False,
        delay=2.0 if progress is None else 0.0,
    )
    return bar
