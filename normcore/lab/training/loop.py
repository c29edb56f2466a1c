"""One training loop for all experiments, and runs in pairs that theory calls equal.

Two runs that agree in exact arithmetic drift apart in floats: training amplifies the rounding of the first steps. How
fast is measured by a twin, the same run started one rounding error away.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from normcore.checks import (
    checked,
    checked_count,
    checked_number,
    checked_pair,
    checked_seed,
    require_flags,
    require_type,
)
from normcore.equivalence.optimizer import ExpLR
from normcore.equivalence.schedule import EquivalentSchedule, follow
from normcore.lab.training.checkpoint import RunState
from normcore.lab.training.probes import History, Probe, Recorder, direction, require_probes, trainable
from normcore.lab.training.processes import is_main

Batches = Sequence[tuple[Tensor, Tensor]]
LossFn = Callable[[Tensor, Tensor], Tensor]


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    *,
    loss_fn: LossFn = cross_entropy,
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

    A loss that is not finite ends the run and is its result: `diverged_at` is the step, losses and readings are nan from
    there, nothing is raised. On a processor the weights are then those before that step. A GPU is never waited for
    between readings (and saves), so there the loss is found at the next one, at the latest after 1,000 steps: the
    step is exact, but the weights have gone on with what came of it, and mean nothing.

    Under `torchrun` it is the same call: wrap the model and share out the batches with
    `normcore.lab.training.processes`. Losses are then means over the processes, and the first one saves.

    With `checkpoint` the run saves itself as it goes, and the same call, made again after a kill at any moment, goes on
    from the last save to the same bits (on a GPU if its algorithms are deterministic): model, optimizer, scheduler,
    ExpLR, records and torch's generators are all in it. A finished run returns its record at once, and a longer list of
    batches extends it. The folder of another run is refused; a run is known by its starting weights, options, schedule
    and scheduler, by the code of loss_fn, probes and before_step with what the first two hold, by autocast and every,
    and by batches 0, 1, 2, 4, 8, ... Checkpoints of sharded (FSDP) models are not written here.

    Args:
        model: trained in place, in the mode it is in.
        optimizer: any torch optimizer over its parameters whose step needs no closure.
        batches: (x, y) for step 0, 1, ..., made when asked for; `[(x, y)] * steps` is full batch.
        loss_fn: of (model(x), y).
        schedule: an `EquivalentSchedule` that the optimizer follows, step by step.
        before_step: called with t after the backward pass and before the optimizer's step.
        scheduler: a torch scheduler that needs no metric, stepped after each step.
        exp_lr: the `ExpLR` attached to the optimizer; only checkpoints need to know it.
        probes: name -> function of the model, read before steps 0, every, ... and after the last.
            One with `state_dict` and `load_state_dict` is saved too.
        every: steps between readings, >= 1.
        autocast: the dtype of mixed precision, torch.bfloat16 say; the weights keep theirs.
        channels_last: the memory format in which convolutions on GPUs are fastest. Refused on a processor where it is not
            safe: for convolutions of width 1 with a stride that read fewer than 8 channels.
        compile: True, or a mode of `torch.compile`; "reduce-overhead" replays CUDA graphs.
        checkpoint: folder for this run alone.
        checkpoint_every: steps between saves, >= 1; the end is always saved.
        progress: whether to show a bar; by default on a terminal, for runs longer than 2 seconds.

    Raises:
        TypeError: an argument of the wrong type, an optimizer or scheduler whose step needs an argument.
        ValueError: one of them is below 1, the schedule is shorter than the batches, or the checkpoint is damaged, that
            of another run, or longer than the batches.
        OSError: a checkpoint cannot be written; the last one is still there.

    Example:
        >>> from normcore.lab import load_dataset, mlp, trainable, weight_norm
        >>> net = mlp((64, 16, 10))
        >>> batches = load_dataset("digits").batches(30, 32)
        >>> optimizer = torch.optim.SGD(trainable(net), lr=0.1)
        >>> history = train(net, optimizer, batches, probes={"norm": weight_norm})
        >>> len(history.loss), len(history["norm"]), bool(history["norm"][-1] > history["norm"][0])
        (30, 31, True)

    """
    for name, value, kind, what in (
        ("model", model, nn.Module, "a torch.nn.Module"),
        ("optimizer", optimizer, Optimizer, "a torch optimizer"),
        ("batches", batches, Sized, "a sequence of pairs (x, y)"),
        ("loss_fn", loss_fn, Callable, "a function"),
        ("schedule", schedule, EquivalentSchedule | None, "an EquivalentSchedule or None"),
        ("before_step", before_step, Callable | None, "a function or None"),
        ("scheduler", scheduler, LRScheduler | None, "a torch scheduler or None"),
        ("exp_lr", exp_lr, ExpLR | None, "an ExpLR or None"),
        ("autocast", autocast, torch.dtype | None, "a torch.dtype or None"),
        ("compile", compile, bool | str, "a bool or a mode of torch.compile"),
        ("checkpoint", checkpoint, str | Path | None, "a path or None"),
        ("progress", progress, bool | None, "a bool or None"),
    ):
        require_type(name, value, kind, what)
    if not hasattr(batches, "__getitem__"):
        raise TypeError(f"batches must be indexed by step, got a {type(batches).__name__}: use list(batches)")
    _require_bare_step("optimizer", optimizer)
    _require_bare_step("scheduler", scheduler)
    if autocast is not None and not autocast.is_floating_point:
        raise ValueError(f"autocast must be a floating-point dtype, got {autocast}")
    require_probes(probes)
    require_flags(channels_last=channels_last)
    steps, every = len(batches), checked_count("every", every)
    checkpoint_every = checked_count("checkpoint_every", checkpoint_every)
    if schedule is not None and schedule.steps < steps:
        need = f"at least {steps} steps, one for each batch"
        raise ValueError(f"schedule must have {need}, got {schedule.steps}")
    recorder, saved, start = Recorder(model, probes or {}), None, 0
    forward = _forward(model, channels_last, compile)
    if checkpoint is not None:
        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "exp_lr": exp_lr}
        others = {
            "schedule": {f.name: getattr(schedule, f.name) for f in fields(schedule)} if schedule else None,
            "loss_fn": loss_fn,
            "before_step": getattr(before_step, "__code__", None),
            "autocast": autocast,
            "every": every,
        }
        saved = RunState(checkpoint, parts, recorder, batches, others)
        start = saved.restore()
    for t in _bar(range(start, steps if recorder.diverged_at is None else start), progress):
        due, saving = t % every == 0, saved if t > start and t % checkpoint_every == 0 else None
        if (due or saving is not None) and recorder.diverged():
            break
        if due:
            recorder.read(t)
        if saving is not None:
            saving.save(t)
        x, y = checked_pair(batches[t], f"batches[{t}]")
        optimizer.zero_grad()
        with nullcontext() if autocast is None else torch.autocast(x.device.type, dtype=autocast):
            loss = loss_fn(forward(x), y)
        if recorder.note(loss):
            break
        loss.backward()
        if schedule is not None:
            follow(optimizer, schedule, t)
        if before_step is not None:
            before_step(t)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    recorder.diverged()  # looks at the last losses
    end = steps if recorder.diverged_at is None else recorder.diverged_at
    if saved is not None and end > start:
        saved.save(end)
    if recorder.diverged_at is None:
        recorder.read(steps)
    return recorder.history(steps, every)


def _require_bare_step(name: str, stepped: Any) -> None:
    """Raise TypeError where `step` waits for what the loop does not have: a closure, a metric."""
    if stepped is None:
        return
    _, *others = inspect.signature(type(stepped).step).parameters.values()
    needed = [p.name for p in others if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if needed:
        kind = type(stepped).__name__
        raise TypeError(f"{name} must step without arguments, got a {kind}, which needs {needed}")


def _forward(model: nn.Module, channels_last: bool, compile: bool | str) -> Callable[[Tensor], Tensor]:
    """The forward pass, compiled or not, in the chosen memory format, which only images have."""
    forward: Callable[[Tensor], Tensor] = model
    if compile is not False:
        try:
            forward = torch.compile(model, mode=None if compile is True else compile)
        except RuntimeError as error:
            raise ValueError(f"compile must be a bool or torch's mode, got {compile!r}: {error}") from error
    if not channels_last:
        return forward
    for name, conv in model.named_modules():
        strided = isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.stride != (1, 1)
        # oneDNN's backward pass writes outside its memory then (torch 2.14, processors with AVX2)
        if strided and conv.in_channels < 8 and conv.weight.device.type == "cpu":
            need = "False on a processor where a 1x1 convolution with a stride reads fewer than 8 channels"
            raise ValueError(f"channels_last must be {need}, got True with {name}")
    model.to(memory_format=torch.channels_last)
    return lambda x: forward(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x)


def _bar(steps: range, progress: bool | None) -> Iterable[int]:
    """The steps behind a progress bar that stays silent in notebooks, short runs and helper processes."""
    hidden = None if progress is None else not progress  # None: tqdm looks for a terminal
    place = {"initial": steps.start, "total": steps.stop, "delay": 2.0 if progress is None else 0.0}
    bar: Iterable[int] = tqdm(steps, disable=hidden if is_main() else True, leave=False, **place)
    return bar


def at_each_step(optimizer: Optimizer, **options: NDArray[np.float64]) -> Callable[[int], None]:
    """Make a `before_step` for `train` that sets options of the first group to entry t of their arrays."""
    return lambda t: optimizer.param_groups[0].update({name: float(v[t]) for name, v in options.items()})


def run(
    net: nn.Module | Callable[[], nn.Module],
    batches: Batches,
    *,
    lr: ArrayLike | None = None,
    weight_decay: ArrayLike = 0.0,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    dampening: float = 0.0,
    schedule: EquivalentSchedule | None = None,
    probes: Mapping[str, Probe] | None = None,
    every: int = 1,
    loss_fn: LossFn = cross_entropy,
) -> History:
    """Train a copy of a net with stock SGD, at given rates and decays or along a schedule.

    Convention: torch's SGD, decay coupled; entry t of an array belongs to the step from t to t+1.

    Args:
        net: the starting point, which is not changed, or a function that makes one.
        batches: one for each step.
        lr: float or (T,); left out with `schedule`.
        weight_decay: float or (T,), of any sign; left out with `schedule`.
        momentum: float or (T,); left out with `schedule`, which has its own.
        nesterov: torch's Nesterov step, of the original run where there is a schedule.
        dampening: of the momentum buffer, likewise. torch applies none in the step that creates
            the buffer, so a matching schedule is made with 0 there.
        schedule: run without weight decay along this.
        probes: as in `train`; by default {"direction": direction}.
        every: steps between readings.
        loss_fn: of (model(x), y).

    Raises:
        TypeError: neither lr nor schedule, or an argument of another type.
        ValueError: both of them, lr < 0, momentum outside [0, 1), an array of the wrong length or not finite, no batches.

    Example:
        >>> import normcore as nc
        >>> from normcore.lab import load_dataset, max_gap, mlp
        >>> net = mlp((64, 16, 10), dtype=torch.float64)
        >>> batches = load_dataset("digits", dtype=torch.float64).batches(20, 32)
        >>> decay = run(net, batches, lr=0.1, weight_decay=0.01)
        >>> free = run(net, batches, schedule=nc.exponential_lr(0.1, 0.01, steps=20))
        >>> max_gap(decay["direction"], free["direction"]) < 1e-12
        True

    """
    require_type("net", net, nn.Module | Callable, "a torch.nn.Module or a function that makes one")
    require_type("batches", batches, Sized, "a sequence of pairs (x, y)")
    require_flags(nesterov=nesterov)
    checked_number("dampening", dampening, least=0.0, below=1.0)
    values = _for_each_step(len(batches), schedule, lr=lr, weight_decay=weight_decay, momentum=momentum)
    if nesterov and (dampening or not values["momentum"].max()):
        raise ValueError(f"nesterov must be False without momentum or with dampening, got {nesterov}")
    model = copy.deepcopy(net) if isinstance(net, nn.Module) else net()
    optimizer = torch.optim.SGD(
        trainable(model),
        lr=float(values["lr"][0]),
        momentum=float(values["momentum"].max()),  # torch refuses nesterov without
        nesterov=nesterov,
        dampening=dampening,
    )
    return train(
        model,
        optimizer,
        batches,
        loss_fn=loss_fn,
        schedule=schedule,
        before_step=at_each_step(optimizer, **values) if schedule is None else None,
        probes={"direction": direction} if probes is None else probes,
        every=every,
    )


def _for_each_step(
    steps: int, schedule: EquivalentSchedule | None, **given: Any
) -> dict[str, NDArray[np.float64]]:
    if not steps:
        raise ValueError("batches must hold at least one, got none")
    require_type("schedule", schedule, EquivalentSchedule | None, "an EquivalentSchedule or None")
    if schedule is not None:
        excess = [name for name, value in given.items() if value is not None and np.any(value)]
        if excess:
            raise ValueError(f"{', '.join(excess)} must be left out, got it beside a schedule, which sets it")
        return {"lr": np.zeros(1), "weight_decay": np.zeros(1), "momentum": schedule.momentum}
    if given["lr"] is None:
        raise TypeError("lr must be given where there is no schedule, got None")
    limits: dict[str, dict[str, float]] = {
        "lr": {"least": 0.0},
        "momentum": {"least": 0.0, "below": 1.0},
        "weight_decay": {},  # a negative one pushes outwards: Theorem 2.13 allows any
    }
    arrays = {name: checked(name, value, **limits[name]) for name, value in given.items()}
    for name, array in arrays.items():
        if array.shape not in ((), (steps,)):
            raise ValueError(f"{name} must be a number or {steps} of them, got {array.shape}")
    return {name: np.broadcast_to(array, (steps,)) for name, array in arrays.items()}


@torch.no_grad()
def rounding_twin(net: nn.Module, seed: int = 0) -> nn.Module:
    """Copy a net and move each trained weight by one unit in the last place, up or down at random.

    Example:
        >>> from normcore.lab import mlp, weight_vector
        >>> net = mlp((64, 16, 10), dtype=torch.float64)
        >>> change = weight_vector(rounding_twin(net)) / weight_vector(net) - 1
        >>> bool(0 < change.abs().max() < 1e-15)
        True

    """
    require_type("net", net, nn.Module, "a torch.nn.Module")
    twin, generator = copy.deepcopy(net), torch.Generator().manual_seed(checked_seed(seed))
    for p in trainable(twin):
        up = torch.randint(2, p.shape, generator=generator).bool().to(p.device)
        target = torch.where(up, torch.inf, -torch.inf).to(p.dtype)
        p.copy_(torch.nextafter(p, target))
    return twin
