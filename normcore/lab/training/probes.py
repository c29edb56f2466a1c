"""What can be read off a model in training.

All of it, but for SWA, also reads models under FSDP2 (`fully_shard`), whose norms are added up and whose vectors
are gathered: call it on all processes, which all get the same numbers (of the same inputs).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from normcore.checks import checked_count, require_examples, require_type, understood
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
