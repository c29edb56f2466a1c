"""Where the data sets come from, one function each, all to the same raw form; and balanced choices of examples."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from normcore.checks import checked_choice, checked_count, require_flags, require_type

DIGITS_TRAIN = 1200
"""Of the 1,797 digits; the other 597 are the test set."""

TEST_SHARE = 5
"""Of a folder without a test part, one image in five of every class."""

LARGE = 2**24
"""Pixels above which no copy in float64 is made for the mean and the deviation."""


class Raw(NamedTuple):
    """Pixels as they are stored, 0 for black and `white` for white; signals are floats, and 1 is 1."""

    pixels_train: Tensor
    y_train: Tensor
    pixels_test: Tensor
    y_test: Tensor
    class_names: tuple[str, ...]
    white: int = 255


def read(name: str, root: str | Path | None, download: bool, image_size: int | None) -> Raw:
    """The data set as it is stored."""
    made = {"digits": digits, "mnist1d": mnist1d}
    checked_choice("name", name, sorted([*made, *TORCHVISION, "image-folder"]))
    require_type("root", root, str | Path | None, "a path or None")
    require_flags(download=download)
    if image_size is not None and (
        checked_count("image_size", image_size, least=0) < 1 or name != "image-folder"
    ):
        raise ValueError(f"image_size must be >= 1, and is for image-folder only, got {image_size!r}")
    if name in made:
        return made[name]()
    if name in TORCHVISION:
        return from_torchvision(name, Path(root or "data"), download)
    if root is None:
        raise ValueError("root must be the directory of images for image-folder, got None")
    return image_folder(Path(root), image_size)


def digits() -> Raw:
    """The digits beside this file (UCI repository, CC BY 4.0; scikit-learn has the same) in a fixed random order."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as stored:
        pixels, labels = stored["pixels"], stored["labels"]
    order = np.random.default_rng(0).permutation(len(pixels))
    images = torch.from_numpy(pixels[order])[:, None]
    y = torch.tensor(labels[order], dtype=torch.int64)
    cut, names = DIGITS_TRAIN, tuple("0123456789")
    return Raw(images[:cut], y[:cut], images[cut:], y[cut:], names, white=16)


def mnist1d() -> Raw:
    """Generated signals of MNIST-1D, by the default arguments of the package."""
    from mnist1d.data import make_dataset

    states = random.getstate(), np.random.get_state()
    try:
        made = make_dataset()  # seeds Python's and NumPy's global generators
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    x, x_test = (torch.tensor(made[part], dtype=torch.float64)[:, None] for part in ("x", "x_test"))
    y, y_test = (torch.tensor(made[part], dtype=torch.int64) for part in ("y", "y_test"))
    return Raw(x, y, x_test, y_test, tuple("0123456789"), white=1)


def from_torchvision(name: str, root: Path, download: bool) -> Raw:
    """Read a data set in torchvision's own files, which it checks."""
    from torchvision import datasets

    parts: list[Tensor] = []
    for train in (True, False):
        try:
            data = getattr(datasets, TORCHVISION[name])(str(root), train=train, download=download)
        except (RuntimeError, AssertionError, ValueError) as error:
            if download:
                raise
            line = f'load_dataset("{name}", root="{root}", download=True)'
            raise FileNotFoundError(
                f"{name} is not in {root}, or is damaged (delete it then); this fetches it: {line}"
            ) from error
        pixels = torch.as_tensor(data.data)
        images = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        parts += [images.contiguous(), torch.as_tensor(data.targets, dtype=torch.int64)]
    x, y, x_test, y_test = parts
    return Raw(x, y, x_test, y_test, tuple(map(str, data.classes)))


TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


def image_folder(root: Path, image_size: int | None = None) -> Raw:
    """Read a directory of class folders, or root/train and root/test, in a fixed random order."""
    split = [(root / part).is_dir() for part in ("train", "test")]
    if any(split) and not all(split):
        raise ValueError(f"root must hold both train and test, or the folders of the classes, got {root}")
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder of images, got {root}")
    if not any(split):
        images, labels, names = _read_folder(root, image_size)
        chosen = first_share(labels, TEST_SHARE)
        return Raw(images[~chosen], labels[~chosen], images[chosen], labels[chosen], names)
    images, labels, names = _read_folder(root / "train", image_size)
    test_images, test_labels, test_names = _read_folder(root / "test", image_size)
    if names != test_names:
        differ = sorted(set(names) ^ set(test_names))
        raise ValueError(f"root must have the same classes in train and test, got {differ} in one of them")
    if images.shape[1:] != test_images.shape[1:]:
        sizes = f"{_size(images)} in train and {_size(test_images)} in test"
        raise ValueError(f"images must have one size, got {sizes}; image_size=32, say, makes them so")
    return Raw(images, labels, test_images, test_labels, names)


def _read_folder(folder: Path, image_size: int | None) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """All images below the class folders of `folder`, as (N, 3, H, W) bytes, shuffled by seed 0."""
    from torchvision.datasets import ImageFolder

    found = ImageFolder(str(folder))
    order = np.random.default_rng(0).permutation(len(found.samples))
    images: Tensor | None = None
    for i, j in enumerate(tqdm(order, desc=f"reading {folder.name}", disable=None)):
        path = found.samples[j][0]
        pixels = _pixels(found.loader, path, image_size)
        if images is None:
            images = torch.empty((len(order), *pixels.shape), dtype=torch.uint8)
        if images.shape[1:] != pixels.shape:
            sizes = f"{_size(images)} and {_size(pixels)} ({path})"
            raise ValueError(f"images must have one size, got {sizes}; image_size=32, say, makes them so")
        images[i] = pixels
    assert images is not None  # torchvision refuses a folder without images
    labels = torch.tensor([found.samples[j][1] for j in order], dtype=torch.int64)
    return images, labels, tuple(found.classes)


def _pixels(loader: Callable[[str], Any], path: str, image_size: int | None) -> Tensor:
    """One image as (3, H, W) bytes; with a size, its shorter side is scaled to it and the middle is cut out."""
    from torchvision.transforms import functional

    try:
        image = loader(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise OSError(f"cannot read the image {path}: {error}") from error
    if image_size is not None:
        image = functional.center_crop(functional.resize(image, [image_size]), [image_size])
    pixels: Tensor = functional.pil_to_tensor(image)
    return pixels


def _size(images: Tensor) -> str:
    return f"{images.shape[-2]}x{images.shape[-1]}"


def mean_and_sd(pixels: Tensor, white: int) -> tuple[float, float]:
    """Mean and standard deviation of all values pixel / white; a large set is counted by value, not copied."""
    if pixels.dtype != torch.uint8 or pixels.numel() <= LARGE:
        values = pixels.to(torch.float64) / white
        return float(values.mean()), float(values.std())
    counts = sum(part.flatten().bincount(minlength=256) for part in pixels.split(4096)).double()
    values, total = torch.arange(256, dtype=torch.float64) / white, len(pixels) * pixels[0].numel()
    mean = float(counts @ values) / total
    return mean, math.sqrt(float(counts @ (values - mean) ** 2) / (total - 1))


def rank_in_class(labels: Tensor) -> Tensor:
    """Count, for each example of (N,) labels >= 0, those of its class that come before it: (N,) int64."""
    order, counts = labels.argsort(stable=True), labels.bincount()
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - first[labels[order]]
    return rank


def balanced(labels: Tensor, size: int, seed: int) -> Tensor:
    """Draw `size` examples at random, as many of each class as can be: (size,) indices.

    A round takes one of each class that has any left; the last round may be cut short. For the same seed, a
    smaller draw is the beginning of a larger one.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return order[rank_in_class(labels[order]).argsort(stable=True)[:size]]


def first_share(labels: Tensor, share: int) -> Tensor:
    """Mark the first 1/share of each class, rounded down: (N,) booleans."""
    return rank_in_class(labels) < labels.bincount()[labels] // share
