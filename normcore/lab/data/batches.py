"""Batches that are made when asked for, each from (seed, step) only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from normcore.checks import checked_count

AUGMENT, EPOCH = 1, 2
"""What a seed is spent on, so that one seed gives unrelated draws to each."""


def generator_of(seed: int, purpose: int, t: int) -> torch.Generator:
    """A CPU generator that depends on (seed, purpose, t) only."""
    words = np.random.SeedSequence([seed % 2**64, purpose, t]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


def windows(x: Tensor, top: Tensor, left: Tensor, mirrored: Tensor, padding: int) -> Tensor:
    """Pad images (B, C, H, W) with zeros and cut from each a window of the old size, at its own place, mirrored or not.

    Rows and columns of the windows begin at top and left, (B,) in 0 ... 2 padding: `padding` leaves them as they are.
    """
    height, width = x.shape[-2:]
    column = torch.arange(width, device=x.device)
    columns = torch.where(mirrored[:, None], column.flip(0), column) + left[:, None]
    rows = torch.arange(height, device=x.device) + top[:, None]
    place = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    places = place.flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return pad(x, (padding,) * 4).flatten(2).gather(2, places).view_as(x)


def augment(x: Tensor, *, crop: int, flip: bool, seed: int, t: int) -> Tensor:
    """Shift each image by up to `crop` pixels each way and mirror half of them.

    The usual augmentation of small photographs (`RandomCrop(size, padding=crop)`, `RandomHorizontalFlip()`), with a
    place and a side for each image, of pixels (B, C, H, W) before they are standardised: what is moved in is black.
    Draws come from a CPU generator that depends on (seed, t) only: the batch is the same on every device, and in a
    run that was resumed.
    """
    generator = generator_of(seed, AUGMENT, t)
    places = torch.randint(2 * crop + 1, (2, len(x)), generator=generator)
    sides = torch.randint(2, (1, len(x)), generator=generator) * flip
    top, left, mirrored = torch.cat([places, sides]).to(x.device, non_blocking=True)
    return windows(x, top, left, mirrored.bool(), crop)


BLOCK = 2**20
"""Draws with replacement are held a block at a time: 4 MiB of int32, however long the run."""


class Draw:
    """Which examples are in the batch of step t, (B,) int32: row t of a table that is held a block at a time.

    With replacement the table is `randint(count, (steps, batch_size))`, where `steps` only keeps that of a short run
    short. Without, a block is an epoch, a fresh permutation; what is left over at its end is dropped.
    """

    def __init__(self, labels: Tensor, steps: int, batch_size: int, seed: int, replacement: bool) -> None:
        steps, self.batch_size = checked_count("steps", steps), checked_count("batch_size", batch_size)
        self.count, self.seed, self.replacement, self.device = len(labels), seed, replacement, labels.device
        if not replacement and batch_size > self.count:
            raise ValueError(f"batch_size must be <= {self.count} without replacement, got {batch_size!r}")
        self.rows = min(steps, max(1, BLOCK // batch_size)) if replacement else self.count // batch_size
        self._held = -1, torch.empty(0)
        self._states = {0: torch.Generator().manual_seed(seed).get_state()} if replacement else {}

    def __call__(self, t: int) -> Tensor:
        """Return the row of step t."""
        block, row = divmod(t, self.rows)
        held, table = self._held
        if held != block:
            table = (self._drawn(block) if self.replacement else self._permuted(block)).to(self.device)
            self._held = block, table  # in one go: threads may share the batches
        return table[row]

    def _drawn(self, block: int) -> Tensor:
        """Draw on from the nearest block whose generator is known."""
        start = max(known for known in list(self._states) if known <= block)
        generator, shape = torch.Generator(), (self.rows, self.batch_size)
        generator.set_state(self._states[start])
        for known in range(start, block + 1):
            table = torch.randint(self.count, shape, generator=generator, dtype=torch.int32)
            self._states[known + 1] = generator.get_state()
        return table

    def _permuted(self, block: int) -> Tensor:
        generator = generator_of(self.seed, EPOCH, block)
        order = torch.randperm(self.count, generator=generator, dtype=torch.int32)
        return order[: self.rows * self.batch_size].view(self.rows, self.batch_size)


@dataclass(frozen=True, eq=False)
class Batches(Sequence[tuple[Tensor, Tensor]]):
    """A list of (x, y) that holds no batch: item t is drawn, augmented and standardised when it is asked for.

    It depends on (seed, t) only, so that a run that goes on from step t sees what it would have seen. A slice
    is `Batches` again, and its first item is the batch of the step where it starts.
    """

    pixels: Tensor  # (N, ...), of the whole training set
    labels: Tensor  # (N,)
    standardise: Callable[[Tensor], Tensor]
    draw: Draw
    steps: range  # of items 0, 1, ...
    seed: int  # of the augmentation
    crop: int  # pixels of padding around random crops
    flip: bool

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]: ...
    @overload
    def __getitem__(self, item: slice) -> "Batches": ...
    def __getitem__(self, item: int | slice) -> "tuple[Tensor, Tensor] | Batches":
        if isinstance(item, slice):
            return replace(self, steps=self.steps[item])
        t = self.steps[item]
        chosen = self.draw(t)
        pixels = self.pixels.index_select(0, chosen)
        if self.crop or self.flip:
            pixels = augment(pixels, crop=self.crop, flip=self.flip, seed=self.seed, t=t)
        return self.standardise(pixels), self.labels.index_select(0, chosen)

    def __repr__(self) -> str:
        return f"Batches({len(self)} of {self.draw.batch_size})"
