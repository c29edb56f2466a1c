"""Batches that are made when asked for, each from (seed, step) only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, overload

import torch
from torch import Tensor

from normcore.lab.augment import EPOCH, augment, generator_of

BLOCK = 2**20
"""Draws with replacement are held a block at a time: 4 MiB of int32, however long the run."""


class Draw(Protocol):
    """Which examples are in the batch of step t: (B,) int32."""

    batch_size: int

    def __call__(self, t: int) -> Tensor:
        """Return the row of step t."""
        ...


class WithReplacement:
    """Row t of one table `randint(count, (steps, batch_size))`, of which a block is held at a time."""

    def __init__(self, count: int, batch_size: int, steps: int, seed: int, device: torch.device) -> None:
        """Start at the seed; `steps` only keeps the table of a short run short."""
        self.count, self.batch_size, self.device = count, batch_size, device
        self.rows = min(steps, max(1, BLOCK // batch_size))
        self._states = {0: torch.Generator().manual_seed(seed).get_state()}
        self._held: tuple[int, Tensor | None] = (-1, None)

    def __call__(self, t: int) -> Tensor:
        """Return row t."""
        block, row = divmod(t, self.rows)
        held, table = self._held
        if table is None or held != block:
            table = self._table(block)
            self._held = block, table  # in one go: threads may share the batches
        return table[row]

    def _table(self, block: int) -> Tensor:
        """Draw on from the nearest block whose generator is known."""
        start = max(known for known in list(self._states) if known <= block)
        generator, shape = torch.Generator(), (self.rows, self.batch_size)
        generator.set_state(self._states[start])
        for known in range(start, block + 1):
            table = torch.randint(self.count, shape, generator=generator, dtype=torch.int32)
            self._states[known + 1] = generator.get_state()
        return table.to(self.device)


class WithoutReplacement:
    """A fresh permutation for each epoch; what is left over at its end is dropped."""

    def __init__(self, count: int, batch_size: int, seed: int, device: torch.device) -> None:
        """Hold no epoch yet."""
        self.count, self.batch_size, self.seed, self.device = count, batch_size, seed, device
        self._held: tuple[int, Tensor | None] = (-1, None)

    def __call__(self, t: int) -> Tensor:
        """Return the examples of step t."""
        epoch, row = divmod(t, self.count // self.batch_size)
        held, order = self._held
        if order is None or held != epoch:
            generator = generator_of(self.seed, EPOCH, epoch)
            order = torch.randperm(self.count, generator=generator, dtype=torch.int32).to(self.device)
            self._held = epoch, order
        return order[row * self.batch_size : (row + 1) * self.batch_size]


def draw_of(labels: Tensor, steps: int, batch_size: int, seed: int, replacement: bool) -> Draw:
    """Choose from the examples of `labels`, with replacement or an epoch at a time."""
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value!r}")
    if replacement:
        return WithReplacement(len(labels), batch_size, steps, seed, labels.device)
    if batch_size > len(labels):
        raise ValueError(f"batch_size must be <= {len(labels)} without replacement, got {batch_size!r}")
    return WithoutReplacement(len(labels), batch_size, seed, labels.device)


@dataclass(frozen=True, eq=False)
class Batches(Sequence[tuple[Tensor, Tensor]]):
    """A list of (x, y) that holds no batch: item t is drawn, augmented and standardised when it is asked for.

    It depends on (seed, t) only, so that a run that goes on from step t sees what it would have seen. A slice
    is `Batches` again, and its first item is the batch of the step where it starts.

    Attributes:
        pixels: (N, ...) of the whole training set.
        labels: (N,).
        standardise: makes floats of pixels.
        draw: step -> which examples.
        steps: the steps of items 0, 1, ...
        seed: of the augmentation.
        crop: pixels of padding around random crops.
        flip: whether half of the images are mirrored.

    """

    pixels: Tensor
    labels: Tensor
    standardise: Callable[[Tensor], Tensor]
    draw: Draw
    steps: range
    seed: int
    crop: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        """Refuse a crop that means nothing."""
        if self.crop < 0:
            raise ValueError(f"crop must be >= 0, got {self.crop!r}")

    def __len__(self) -> int:
        """How many."""
        return len(self.steps)

    @overload
    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]: ...
    @overload
    def __getitem__(self, item: slice) -> "Batches": ...
    def __getitem__(self, item: int | slice) -> "tuple[Tensor, Tensor] | Batches":
        """One batch, or a part of the list."""
        if isinstance(item, slice):
            return replace(self, steps=self.steps[item])
        t = self.steps[item]
        chosen = self.draw(t)
        pixels = self.pixels.index_select(0, chosen)
        if self.crop or self.flip:
            pixels = augment(pixels, crop=self.crop, flip=self.flip, seed=self.seed, t=t)
        return self.standardise(pixels), self.labels.index_select(0, chosen)

    def __repr__(self) -> str:
        """A line."""
        return f"Batches({len(self)} of {self.draw.batch_size})"
