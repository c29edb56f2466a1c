"""The experiment of most sweeps: train a net by SGD at the rates of a cell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normcore.lab.batches import draw_of
from normcore.lab.data import Dataset
from normcore.lab.ensemble import Batches, architecture, train_ensemble
from normcore.lab.jobs import own_randomness
from normcore.lab.probes import trainable, weight_norm
from normcore.lab.train import train

RATES = ("lr", "weight_decay", "momentum")

STACK = 2**20
"""Trained weights in a stack of models: more and the stack leaves the cache, and with it the speed."""

FEWEST = 4
"""Models in a stack, however large they are."""


@dataclass(frozen=True, eq=False)
class Training:
    """Train a net by SGD, coupled weight decay and momentum, at the rates of a cell: an experiment for `sweep`.

    A cell holds `lr`, and may hold `weight_decay`, `momentum` (0 by default; each a number or one for each step)
    and `seed` (0 by default). All other settings and the seed go to `make_net`; the seed also draws the batches.

    Attributes:
        make_net: makes a net from `seed=` and what else cells hold; picklable, to be of use in other processes.
        data: inputs and labels, or a `Dataset`, whose training part is used.
        steps: how many.
        batch_size: drawn with replacement from the cell's seed; None is full batch.
        loss_fn: of (net(x), y).
        probes: name -> function of the net, read after the last step.

    Returns (from a call):
        "loss" (steps,), before each step, nan after a divergence; "norm", of the trained weights after the last
        step; "diverged_at", the first step with a non-finite loss, at which training stopped, or nan; the probes.

    Example:
        >>> from functools import partial
        >>> from normcore.lab import grid, load_dataset, mlp, sweep
        >>> training = Training(partial(mlp, (64, 16, 10)), load_dataset("digits"), steps=20, batch_size=32)
        >>> result = sweep(training, grid(lr=[0.1, 0.3], seed=[0, 1]), backend="vmap")
        >>> result["loss"].shape, bool(result["norm"][2] > result["norm"][0])  # a larger rate, a larger norm
        ((4, 20), True)

    """

    make_net: Callable[..., nn.Module]
    data: tuple[Tensor, Tensor] | Dataset
    steps: int
    batch_size: int | None = None
    loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    probes: Mapping[str, Callable[[nn.Module], Any]] = field(default_factory=dict)
    planned: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse what would fail in every cell."""
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value!r}")
        taken = {"loss", "norm", "diverged_at"} & set(self.probes)
        if taken:
            raise ValueError(f"probes must have names of their own, got {sorted(taken)}")

    def shortened(self, steps: int) -> "Training":
        """The same with fewer steps; schedules are cut."""
        return replace(self, steps=min(steps, self.steps), planned=self.planned or self.steps)

    def __call__(self, **cell: Any) -> dict[str, Any]:
        """Train one net by torch.optim.SGD."""
        net, values = self._net(cell), self._rates(cell)
        optimizer = torch.optim.SGD(trainable(net), **dict(zip(RATES, values[:, 0].tolist(), strict=True)))

        def set_rates(t: int) -> None:
            optimizer.param_groups[0].update(zip(RATES, values[:, t].tolist(), strict=True))

        moving = set_rates if np.ptp(values, axis=1).any() else None
        batches = self._batches(cell.get("seed", 0))
        history = train(net, optimizer, batches, loss_fn=self.loss_fn, before_step=moving, progress=False)
        loss = np.full(self.steps, np.nan)
        loss[: len(history.loss)] = history.loss
        return self._results(net, loss, history.diverged_at)

    def together(self, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Train the nets of many cells at once, those of equal architecture in one stack.

        Raises:
            ValueError: a net has layers that draw random numbers, such as dropout.

        """
        nets = [self._net(cell) for cell in cells]
        rates = np.stack([self._rates(cell) for cell in cells])
        batches = {seed: self._batches(seed) for seed in {cell.get("seed", 0) for cell in cells}}
        groups = dict[str, list[int]]()
        for k, net in enumerate(nets):
            groups.setdefault(architecture(net), []).append(k)
        results = dict[int, dict[str, Any]]()
        for members in (part for group in groups.values() for part in _parts(group, nets[group[0]])):
            lr, weight_decay, momentum = rates[members].swapaxes(0, 1)
            outcome = train_ensemble(
                [nets[k] for k in members],
                [batches[cells[k].get("seed", 0)] for k in members],
                loss_fn=self.loss_fn,
                lr=lr,
                weight_decay=weight_decay,
                momentum=momentum,
            )
            for place, k in enumerate(members):
                results[k] = self._results(nets[k], outcome.loss[:, place], outcome.diverged_at[place])
        return [results[k] for k in range(len(cells))]

    def _net(self, cell: Mapping[str, Any]) -> nn.Module:
        """The net of a cell, the same wherever it is made."""
        settings = {name: value for name, value in cell.items() if name not in RATES}
        with own_randomness(cell):
            return self.make_net(**{"seed": 0, **settings})

    def _rates(self, cell: Mapping[str, Any]) -> NDArray[np.float64]:
        """Learning rate, weight decay and momentum at each step, (3, steps)."""
        if "lr" not in cell:
            raise ValueError(f"cell must have an lr, got {dict(cell)}")
        planned, rows = self.planned or self.steps, list[NDArray[np.float64]]()
        for name in RATES:
            value = np.asarray(cell.get(name, 0.0), dtype=np.float64)
            if value.shape not in ((), (planned,)):
                raise ValueError(f"{name} must be a number or {planned} of them, got shape {value.shape}")
            if not (np.isfinite(value).all() and (value >= 0).all()):
                raise ValueError(f"{name} must be >= 0 and finite, got {cell[name]!r}")
            rows.append(np.broadcast_to(value, (planned,))[: self.steps])
        return np.stack(rows)

    def _batches(self, seed: int) -> Batches:
        """What the net of a seed is trained on, step by step."""
        if self.batch_size is None:
            data = self.data
            return [(data.x_train, data.y_train) if isinstance(data, Dataset) else data] * self.steps
        if isinstance(self.data, Dataset):
            return self.data.batches(self.steps, self.batch_size, seed)
        return _Drawn(*self.data, steps=self.steps, batch_size=self.batch_size, seed=seed)

    def _results(self, net: nn.Module, loss: NDArray[np.float64], diverged_at: int | None) -> dict[str, Any]:
        """What a cell keeps."""
        read = {name: probe(net) for name, probe in self.probes.items()}
        return {"loss": loss, "norm": weight_norm(net), "diverged_at": diverged_at, **read}


class _Drawn(Sequence[tuple[Tensor, Tensor]]):
    """Batches drawn from a pair of tensors as `Dataset.batches` draws them."""

    def __init__(self, x: Tensor, y: Tensor, *, steps: int, batch_size: int, seed: int) -> None:
        """Start a draw."""
        self.x, self.y, self.steps = x, y, steps
        self.draw = draw_of(y, steps, batch_size, seed, True)

    def __len__(self) -> int:
        """How many steps."""
        return self.steps

    def __getitem__(self, t: Any) -> Any:
        """The batch of step t."""
        index = self.draw(t)
        return self.x[index], self.y[index]


def _parts(members: list[int], net: nn.Module) -> list[list[int]]:
    """Cut a group into stacks of a size that is fast."""
    size = max(FEWEST, STACK // max(1, sum(p.numel() for p in trainable(net))))
    count = -(-len(members) // size)
    return [members[i::count] for i in range(count)]
