"""What can be read off a model in training, what a run records of it, and the recorder that fills the record.

All probes but SWA also read models under FSDP2 (`fully_shard`), whose norms are added up and whose vectors
are gathered: call them on all processes, which all get the same numbers (of the same inputs).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from normcore.checks import checked_count, require_examples, require_type, understood
from normcore.lab.training.processes import mean_over_ranks
from normcore.sharded import is_sharded, norm_over_parts, reshard, whole


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters that are trained; of a sharded model always the shards, as optimizers need them."""
    require_type("model", model, nn.Module, "a torch.nn.Module")
    reshard(model)  # after a forward pass FSDP registers whole weights, for a time, and in its own precision
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("model must have a trainable parameter, got none")
    return params


def weight_vector(model: nn.Module) -> Tensor:
    """Concatenate all trained weights into one flat vector (a copy).

    Those of a sharded model are gathered: all processes must ask.
    """
    return torch.cat([whole(p).flatten() for p in trainable(model)])


def weight_norm(model: nn.Module) -> float:
    """Measure the norm of the concatenated trained weights, the |theta| of the theory."""
    params = trainable(model)
    if any(is_sharded(p) for p in params):
        return norm_over_parts(params)
    return float(weight_vector(model).double().norm())


def direction(model: nn.Module) -> Tensor:
    """Return theta/|theta|, the unit vector that a scale-invariant function depends on."""
    vector = weight_vector(model).double()
    return vector.div(vector.norm())


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Evaluate the model on x without gradients, in the mode it is in.

    In training mode BatchNorm uses the statistics of x; its running ones are left as they were.

    Example:
        >>> from normcore.lab import cnn
        >>> logits(cnn(), torch.ones(4, 1, 8, 8)).shape
        torch.Size([4, 10])

    """
    require_type("model", model, nn.Module, "a torch.nn.Module")
    require_type("x", x, Tensor, "a tensor")
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    output: Tensor = model(x)
    for buffer, value in saved:
        buffer.copy_(value)
    return output


def logits_on(x: Tensor) -> Callable[[nn.Module], Tensor]:
    """Make a probe for `train`: the logits on fixed inputs."""
    require_type("x", x, Tensor, "a tensor")
    return lambda model: logits(model, x)


def accuracy_on(x: Tensor, y: Tensor, *, chunk: int | None = None) -> Callable[[nn.Module], float]:
    """Make a probe for `train`: the accuracy on fixed inputs, between 0 and 1, in the mode the model is in.

    Args:
        x: inputs.
        y: labels.
        chunk: examples evaluated at once, so that memory stays small (in training mode BatchNorm then takes its
            statistics from each chunk); by default all.

    Example:
        >>> from normcore.lab import load_dataset, mlp
        >>> data = load_dataset("digits")
        >>> 0.0 <= accuracy_on(data.x_test, data.y_test)(mlp((64, 16, 10))) < 0.3
        True

    """
    return loss_on(x, y, lambda output, y: (output.argmax(dim=1) == y).double().mean(), chunk=chunk)


def loss_on(
    x: Tensor,
    y: Tensor,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    *,
    chunk: int | None = None,
) -> Callable[[nn.Module], float]:
    """Make a probe for `train`: the mean loss on fixed inputs, in the mode the model is in; `chunk` as in `accuracy_on`."""
    require_examples(x, y)
    require_type("loss_fn", loss_fn, Callable, "a function")
    size = len(x) if chunk is None else checked_count("chunk", chunk)
    parts = [(a, b, len(b) / len(y)) for a, b in zip(x.split(size), y.split(size), strict=True)]
    return lambda model: sum(float(loss_fn(logits(model, a), b)) * share for a, b, share in parts)


class Stateful:
    """A probe that remembers: a checkpoint keeps the attributes that it names in `kept`, each with its type."""

    kept: tuple[tuple[str, Any], ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """What is to be kept."""
        return {name: getattr(self, name) for name, _ in self.kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; tensors come on the processor, wherever they were."""
        with understood(state, f"the state_dict of {type(self).__name__}"):
            for name, kind in self.kept:
                require_type(name, state[name], kind, str(kind))
        vars(self).update({name: state[name] for name, _ in self.kept})


class Angle(Stateful):
    """A probe for `train`: the angle, in radians, by which the weight vector turned since the last reading.

    The first reading is nan. Two times the arcsine of half the chord between the unit vectors: exact for
    small angles, where the arccosine of their product is not.

    Example:
        >>> from normcore.lab import mlp
        >>> net, angle = mlp((64, 16, 10), dtype=torch.float64), Angle()
        >>> angle(net)
        nan
        >>> trainable(net)[0].data.mul_(7.0).norm() > 0  # a change of length is not a turn
        tensor(True)
        >>> angle(net) < 1e-12
        True

    """

    kept: tuple[tuple[str, Any], ...] = (("before", Tensor | None),)

    def __init__(self) -> None:
        self.before: Tensor | None = None

    def __call__(self, model: nn.Module) -> float:
        """Read the model, as a probe."""
        now, before = direction(model), self.before
        if before is not None and before.shape != now.shape:
            raise ValueError(f"model must be the one read before, with {len(before)} weights, got {len(now)}")
        self.before = now
        if before is None:
            return math.nan
        return 2 * math.asin(min(1.0, float((now - before.to(now)).norm()) / 2))


class SWA(Stateful):
    """A probe for `train`: the accuracy of the average of all weights read so far.

    The average is a model of its own, evaluated in the mode the trained one is in. In training mode
    BatchNorm takes its statistics from x, which is what recomputing them for the average amounts to.

    Args:
        x: inputs.
        y: labels.
        first: the reading, counted from 0, from which on weights are taken in; nan before.
        chunk: as in `accuracy_on`.

    Example:
        >>> from normcore.lab import load_dataset, mlp
        >>> data, net = load_dataset("digits"), mlp((64, 16, 10))
        >>> swa = SWA(data.x_test, data.y_test)
        >>> swa(net) == accuracy_on(data.x_test, data.y_test)(net)  # the average of one
        True

    Raises:
        TypeError: when called with a model under `fully_shard`, which torch cannot copy.

    Source: Izmailov et al. (2018), arXiv 1803.05407; the averaging is torch.optim.swa_utils.

    """

    kept = (("readings", int), ("weights", Mapping | None))

    def __init__(self, x: Tensor, y: Tensor, *, first: int = 0, chunk: int | None = None) -> None:
        self.accuracy, self.readings = accuracy_on(x, y, chunk=chunk), 0
        self.first = checked_count("first", first, least=0)
        self.average: AveragedModel | None = None
        self.weights: dict[str, Any] | None = None

    def __call__(self, model: nn.Module) -> float:
        """Take the weights into the average and read its accuracy."""
        params = trainable(model)
        if self.average and [p.shape for p in params] != [p.shape for p in trainable(self.average)]:
            raise ValueError("model must be the one that was read before, got weights of other shapes")
        self.readings += 1
        if self.readings <= self.first:
            return math.nan
        if any(is_sharded(p) for p in params):
            need = "whole weights to be averaged by SWA, got sharded ones"
            raise TypeError(f"model must have {need}: torch cannot copy a model under fully_shard")
        if self.average is None:
            self.average = AveragedModel(model)
            if self.weights is not None:  # of a checkpoint
                self.average.load_state_dict(self.weights)
        self.average.update_parameters(model)
        self.weights = self.average.state_dict()
        return self.accuracy(self.average)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, at the next reading."""
        super().load_state_dict(state)
        self.average = None


Probe = Callable[[nn.Module], Tensor | float]

MOST_WAITING = 1000
"""Losses that stay on a GPU at most: whoever reads one waits for the device."""


@dataclass(frozen=True, eq=False)
class Record:
    """Losses, and the readings of probes at some steps: `record["name"]` is that of a probe. See `History`."""

    loss: NDArray[np.float64]
    step: NDArray[np.int64]
    records: Mapping[str, NDArray[np.float64]]

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """The record of a probe; KeyError where there is none of that name."""
        if name not in self.records:
            raise KeyError(f"no probe named {name!r}; the run recorded {sorted(self.records)}")
        return self.records[name]


@dataclass(frozen=True, eq=False)
class History(Record):
    """What a run recorded, and where it diverged.

    Attributes:
        loss: (T,) batch loss at each step, before the step.
        step: the steps t before which the probes were read; the last reading follows the last step.
        records: probe name -> array whose first axis runs over `step`; `history["name"]` is short.
        diverged_at: the first step whose loss is not finite, or None; losses and readings are nan from there.

    """

    diverged_at: int | None = None


def require_probes(probes: Any) -> None:
    """Raise TypeError unless these are functions by name, or None."""
    require_type("probes", probes, Mapping | None, "a dict of functions or None")
    for name, probe in (probes or {}).items():
        require_type(f"probes[{name!r}]", probe, Callable, "a function")


class Recorder:
    """Keeps the losses, on the device until somebody needs them, and reads the probes at most once for each t."""

    def __init__(self, model: nn.Module, probes: Mapping[str, Probe]) -> None:
        self.model, self.probes = model, probes
        self.losses, self.steps, self.waiting = list[float](), list[int](), list[Tensor]()
        self.readings: dict[str, list[NDArray[np.float64]]] = {name: [] for name in probes}
        self.diverged_at: int | None = None

    def note(self, loss: Tensor) -> bool:
        """Take the loss of the next step; whether the run is known to have diverged, at once on a processor."""
        if loss.device.type == "cpu":
            return self._keep([float(mean_over_ranks(loss.detach()))])
        self.waiting.append(loss.detach().clone())  # a CUDA graph may write the next one to the same place
        return len(self.waiting) >= MOST_WAITING and self.diverged()

    def diverged(self) -> bool:
        """Look at the losses that are still on the device; whether one of all was not finite."""
        waiting, self.waiting = self.waiting, []
        return self._keep(mean_over_ranks(torch.stack(waiting)).flatten().tolist() if waiting else [])

    def _keep(self, losses: list[float]) -> bool:
        bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        if bad and self.diverged_at is None:
            self.diverged_at = len(self.losses) + bad[0]
        self.losses += losses
        return self.diverged_at is not None

    def read(self, t: int) -> None:
        """Read every probe, unless that was done for this t."""
        if t in self.steps[-1:]:
            return
        self.steps.append(t)
        for name, probe in self.probes.items():
            value = probe(self.model)
            array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value
            self.readings[name].append(np.array(array, dtype=np.float64))

    def history(self, steps: int, every: int) -> History:
        """Everything as arrays, nan from the step of divergence on."""
        end = math.inf if self.diverged_at is None else self.diverged_at
        step = np.array([*range(0, steps, every), steps])
        loss = np.where(np.arange(steps) < end, _filled(self.losses, steps), np.nan)
        records = {name: _filled(values, len(step)) for name, values in self.readings.items() if values}
        for values in records.values():
            values[step >= end] = np.nan
        return History(loss, step, records, self.diverged_at)

    def state_dict(self) -> dict[str, Any]:
        """Losses, readings and the state of the probes that have one, for a checkpoint."""
        return {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "diverged_at": self.diverged_at,
            "steps": list(self.steps),
            "readings": {n: torch.tensor(np.array(values)) for n, values in self.readings.items()},
            "probes": {n: p.state_dict() for n, p in self.probes.items() if hasattr(p, "state_dict")},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.losses, self.steps = state["losses"].tolist(), list(state["steps"])
        self.diverged_at = state["diverged_at"]
        self.readings = {name: list(values.numpy()) for name, values in state["readings"].items()}
        for name, saved in state["probes"].items():
            getattr(self.probes[name], "load_state_dict")(saved)  # noqa: B009  # a Probe need not have one


def _filled(values: list[Any], length: int) -> NDArray[np.float64]:
    """The first values as an array of that length, with nan behind them."""
    known = np.array(values[:length], dtype=np.float64)
    return np.concatenate([known, np.full((length - len(known), *known.shape[1:]), np.nan)])
