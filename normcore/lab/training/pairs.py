"""Pairs of runs that theory calls equal, and a third to hold against their difference.

Two runs that agree in exact arithmetic drift apart in floats: training amplifies the rounding of
the first steps. How fast is measured by a twin, the same run started one rounding error away.
"""

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normcore.equivalence.schedule import EquivalentSchedule
from normcore.lab.training.history import History, Probe
from normcore.lab.training.loop import Batches, train
from normcore.lab.training.probes import direction, trainable


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
    loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> History:
    """Train a copy of a net with stock SGD, at given rates and decays or along a schedule.

    Convention: torch's SGD, decay coupled; entry t of an array belongs to the step from t to t+1.

    Args:
        net: the starting point, which is not changed, or a function that makes one.
        batches: one for each step.
        lr: float or (T,); left out with `schedule`.
        weight_decay: float or (T,); left out with `schedule`.
        momentum: float or (T,); left out with `schedule`, which has its own.
        nesterov: torch's Nesterov step, of the original run where there is a schedule.
        dampening: of the momentum buffer, likewise. torch applies none in the step that creates
            the buffer, so a matching schedule is made with 0 there.
        schedule: run without weight decay along this.
        probes: as in `train`; by default {"direction": direction}.
        every: steps between readings.
        loss_fn: of (model(x), y).

    Returns:
        History.

    Raises:
        ValueError: neither or both of lr and schedule, or an array of the wrong length.

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
    given = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
    values = _options(given, len(batches), schedule)
    model = copy.deepcopy(net) if isinstance(net, nn.Module) else net()
    optimizer = torch.optim.SGD(
        trainable(model),
        lr=float(values["lr"][0]),
        momentum=float(values["momentum"].max()),  # torch refuses nesterov without
        weight_decay=float(values["weight_decay"][0]),
        nesterov=nesterov,
        dampening=dampening,
    )

    def set_options(t: int) -> None:
        now = {name: float(array[t]) for name, array in values.items()}
        optimizer.param_groups[0].update(now)

    return train(
        model,
        optimizer,
        batches,
        loss_fn=loss_fn,
        schedule=schedule,
        before_step=set_options if schedule is None else None,
        probes={"direction": direction} if probes is None else probes,
        every=every,
    )


def _options(
    given: Mapping[str, ArrayLike | None], steps: int, schedule: EquivalentSchedule | None
) -> dict[str, NDArray[np.float64]]:
    """One value of each option for each step."""
    if schedule is not None:
        excess = [name for name, value in given.items() if value is not None and np.any(value)]
        if excess:
            raise ValueError(f"{', '.join(excess)} must be left out: the schedule sets it")
        return {"lr": np.zeros(1), "weight_decay": np.zeros(1), "momentum": schedule.momentum}
    if given["lr"] is None:
        raise ValueError("lr must be given where there is no schedule")
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in given.items()}
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
    twin = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    for p in trainable(twin):
        up = torch.randint(2, p.shape, generator=generator).bool().to(p.device)
        target = torch.where(up, torch.inf, -torch.inf).to(p.dtype)
        p.copy_(torch.nextafter(p, target))
    return twin
