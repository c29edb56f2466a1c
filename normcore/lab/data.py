"""Data sets as tensors that are resident on the device."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

DIGITS_TRAIN = 1200
"""Of the 1,797 digits; the other 597 are the test set."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels, standardised by one mean and one standard deviation.

    Attributes:
        name: of the data set.
        x_train: (N, C, H, W) training images.
        y_train: (N,) their labels, 0 ... classes-1.
        x_test: (M, C, H, W) test images, standardised with the numbers of the training images.
        y_test: (M,) their labels.
        classes: how many.

    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int

    def __repr__(self) -> str:
        """A line."""
        train, test = tuple(self.x_train.shape), tuple(self.x_test.shape)
        return f"Dataset({self.name!r}, train={train}, test={test}, classes={self.classes})"

    def batches(self, steps: int, batch_size: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
        """Draw training batches with replacement, the same for the same seed.

        The draw has a generator of its own: torch's does not move. More steps keep the first ones.

        Args:
            steps: how many, >= 1.
            batch_size: examples in each, >= 1.
            seed: of the draws.

        Returns:
            A list of (x, y) pairs.

        Raises:
            ValueError: steps or batch_size is below 1.

        Example:
            >>> [tuple(x.shape) for x, y in load_dataset("digits").batches(2, 100)]
            [(100, 1, 8, 8), (100, 1, 8, 8)]

        """
        for name, value in (("steps", steps), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value!r}")
        generator = torch.Generator().manual_seed(seed)
        shape, count = (steps, batch_size), len(self.x_train)
        index = torch.randint(count, shape, generator=generator).to(self.x_train.device)
        return [(self.x_train[i], self.y_train[i]) for i in index]


def load_dataset(
    name: str,
    root: str | Path | None = None,
    download: bool = False,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Dataset:
    """Load a data set by name.

    "digits" is scikit-learn's 1,797 real handwritten digits, 8x8 pixels, which come with the
    package: 1,200 for training and 597 for testing, in a fixed random order.

    Args:
        name: "digits".
        root: folder of data sets kept on disk; digits needs none.
        download: whether missing files may be fetched; digits has none.
        dtype: of the images.
        device: of all tensors.

    Returns:
        Dataset.

    Raises:
        ValueError: the name is unknown.

    Example:
        >>> load_dataset("digits")
        Dataset('digits', train=(1200, 1, 8, 8), test=(597, 1, 8, 8), classes=10)

    """
    if name not in LOADERS:
        raise ValueError(f"name must be one of {sorted(LOADERS)}, got {name!r}")
    images, labels, split, classes = LOADERS[name]()
    train = images[:split]
    images = ((images - train.mean()) / train.std()).to(device, dtype)
    labels = labels.to(device)
    parts = (images[:split], labels[:split], images[split:], labels[split:])
    return Dataset(name, *parts, classes)


def _digits() -> tuple[Tensor, Tensor, int, int]:
    """Images in [0, 1], labels, number of training images, number of classes."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    images = torch.tensor(pixels[order] / 16.0, dtype=torch.float64).reshape(-1, 1, 8, 8)
    return images, torch.tensor(labels[order], dtype=torch.int64), DIGITS_TRAIN, 10


LOADERS = {"digits": _digits}
"""Name -> function that returns images in [0, 1], labels, size of the training part, classes."""
