"""Random crops and flips of a whole batch at once, on the device where it lies."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

AUGMENT, EPOCH = 1, 2
"""What a seed is spent on, so that one seed gives unrelated draws to each."""


def generator_of(seed: int, purpose: int, t: int) -> torch.Generator:
    """A CPU generator that depends on (seed, purpose, t) only."""
    words = np.random.SeedSequence([seed % 2**64, purpose, t]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


def windows(x: Tensor, top: Tensor, left: Tensor, mirrored: Tensor, padding: int) -> Tensor:
    """Pad the images with zeros and cut from each a window of the old size, at its own place, mirrored or not.

    Args:
        x: (B, C, H, W) images; zero is black for pixels that are not standardised yet.
        top: (B,) first row of each window, 0 ... 2 padding; padding leaves the rows as they are.
        left: (B,) first column, likewise.
        mirrored: (B,) booleans: left and right of the window change places.
        padding: pixels added on each side.

    Returns:
        (B, C, H, W).

    Example:
        >>> image, here = torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor
        >>> windows(image, here([0]), here([1]), here([True]), 1)[0, 0].tolist()  # a row down, mirrored
        [[0, 0], [2, 1]]

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

    The usual augmentation of small photographs (`RandomCrop(size, padding=crop)`, `RandomHorizontalFlip()`),
    with a place and a side for each image. Draws come from a CPU generator that depends on (seed, t) only: the
    batch is the same on every device, and in a run that was resumed.

    Args:
        x: (B, C, H, W) pixels, before they are standardised: what is moved in is black.
        crop: pixels of padding; 0 does not move the images.
        flip: whether to mirror each image with probability 1/2.
        seed: of the draws.
        t: the step.

    Returns:
        (B, C, H, W).

    Example:
        >>> x = torch.arange(1, 5, dtype=torch.uint8).reshape(1, 1, 2, 2)
        >>> [augment(x, crop=0, flip=True, seed=0, t=t).flatten().tolist() for t in (1, 2, 3, 4)]
        [[2, 1, 4, 3], [1, 2, 3, 4], [1, 2, 3, 4], [2, 1, 4, 3]]

    """
    generator = generator_of(seed, AUGMENT, t)
    places = torch.randint(2 * crop + 1, (2, len(x)), generator=generator)
    sides = torch.randint(2, (1, len(x)), generator=generator) * flip
    top, left, mirrored = torch.cat([places, sides]).to(x.device, non_blocking=True)
    return windows(x, top, left, mirrored.bool(), crop)
