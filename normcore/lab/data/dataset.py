"""Data sets as tensors that are resident on the device."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from normcore.checks import (
    checked_count,
    checked_number,
    checked_seed,
    require_device,
    require_flags,
    require_type,
)
from normcore.lab.data.batches import Batches, Draw
from normcore.lab.data.sources import balanced, mean_and_sd, read


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels on one device, standardised by one mean and one standard deviation.

    Pixels stay bytes; floats are made a batch at a time, or by `x_train` and `x_test` for all:
    x = (pixel / white - mean) / sd.

    Attributes:
        name: of the data set.
        pixels_train: (N, C, H, W) training images as bytes, or (N, C, L) signals as floats.
        y_train: (N,) their labels, 0 ... classes-1.
        pixels_test: (M, C, H, W) test images.
        y_test: (M,) their labels.
        classes: how many.
        class_names: their names, in the order of the labels.
        white: the pixel that counts as 1.
        mean: of the training part, where white is 1.
        sd: standard deviation of the training part.
        dtype: of the floats.

    """

    name: str
    pixels_train: Tensor
    y_train: Tensor
    pixels_test: Tensor
    y_test: Tensor
    classes: int
    class_names: tuple[str, ...]
    white: int
    mean: float
    sd: float
    dtype: torch.dtype

    def __repr__(self) -> str:
        train, test = tuple(self.pixels_train.shape), tuple(self.pixels_test.shape)
        return f"Dataset({self.name!r}, train={train}, test={test}, classes={self.classes})"

    @cached_property
    def x_train(self) -> Tensor:
        """(N, C, H, W) training images, standardised."""
        return self.standardise(self.pixels_train)

    @cached_property
    def x_test(self) -> Tensor:
        """(M, C, H, W) test images, standardised with the numbers of the training images."""
        return self.standardise(self.pixels_test)

    def standardise(self, pixels: Tensor) -> Tensor:
        """Make floats of pixels of any shape: (pixel / white - mean) / sd, the same bits on every device.

        Example:
            >>> data = load_dataset("digits")
            >>> torch.equal(data.standardise(data.pixels_test), data.x_test)
            True

        """
        require_type("pixels", pixels, Tensor, "a tensor")
        if pixels.dtype != torch.uint8:
            return (pixels - self.mean) / self.sd
        return self._values.index_select(0, pixels.flatten().int()).view(pixels.shape)

    @cached_property
    def _values(self) -> Tensor:
        values = (torch.arange(256, dtype=torch.float64) / self.white - self.mean) / self.sd
        return values.to(self.dtype).to(self.pixels_train.device)

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> "Dataset":
        """Keep some of the images, as many of each class as can be, drawn at random.

        Mean and deviation stay those of the whole set: an image keeps its floats. For the same seed, a
        smaller subset is the beginning of a larger one.

        Args:
            train: how many training images, 1 ... N (else a ValueError); None keeps all, in their order.
            test: how many test images, likewise.
            seed: of the draw.

        Example:
            >>> load_dataset("digits").subset(train=30).y_train.bincount().tolist()
            [3, 3, 3, 3, 3, 3, 3, 3, 3, 3]

        """
        kept, seed = dict[str, Tensor](), checked_seed(seed)
        for part, size in (("train", train), ("test", test)):
            pixels, labels = getattr(self, f"pixels_{part}"), getattr(self, f"y_{part}")
            if size is None:
                continue
            if checked_count(part, size) > len(labels):
                raise ValueError(f"{part} must be <= {len(labels)}, got {size!r}")
            chosen = balanced(labels.cpu(), size, seed).to(labels.device)
            kept |= {f"pixels_{part}": pixels[chosen], f"y_{part}": labels[chosen]}
        return replace(self, **kept)  # type: ignore[arg-type]

    def batches(
        self,
        steps: int,
        batch_size: int,
        seed: int = 0,
        *,
        replacement: bool = True,
        crop: int = 0,
        flip: bool = False,
    ) -> Batches:
        """Draw training batches: pairs (x, y) as a sequence, with a length, items and slices, the same for the same seed.

        They are made when asked for: `batches[t]` depends on (seed, t) only, in whatever order and on whatever
        device, and memory does not grow with steps. More steps keep the first ones. torch's own generator does
        not move.

        Args:
            steps: how many, >= 1.
            batch_size: examples in each, >= 1.
            seed: of the draws.
            replacement: whether each example is drawn from all; otherwise each epoch is a fresh permutation,
                whose last batch is dropped where it is not full.
            crop: pixels of black around each image before a window of its size is cut out at random.
            flip: whether each image is mirrored with probability 1/2.

        Raises:
            ValueError: steps or batch_size is below 1, batch_size is above the size of the training set
                (without replacement), crop is negative, or signals would be cropped or flipped.

        Example:
            >>> batches = load_dataset("digits").batches(12, 100, replacement=False, crop=1)
            >>> len(batches), [tuple(x.shape) for x, y in batches[:2]]
            (12, [(100, 1, 8, 8), (100, 1, 8, 8)])
            >>> len(torch.cat([x for x, y in load_dataset("digits").batches(3, 400, replacement=False)]))
            1200

        """
        require_flags(replacement=replacement, flip=flip)
        if (checked_count("crop", crop, least=0) or flip) and self.pixels_train.ndim != 4:
            shape = tuple(self.pixels_train.shape[1:])
            raise ValueError(f"crop and flip need images (C, H, W), got examples of shape {shape}")
        seed = checked_seed(seed)
        draw = Draw(self.y_train, steps, batch_size, seed, replacement)
        parts = (self.pixels_train, self.y_train, self.standardise, draw)
        return Batches(*parts, range(steps), seed, crop, flip)


def load_dataset(
    name: str,
    root: str | Path | None = None,
    download: bool = False,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
) -> Dataset:
    """Load a data set by name, whole, onto the device.

    - "digits": 1,797 handwritten digits, 8x8 pixels, of the package; 1,200 for training, in a fixed random order.
    - "mnist1d": 4,000 + 1,000 signals of length 40, ten classes, generated in a few seconds.
    - "mnist", "fashion-mnist", "cifar10", "cifar100": torchvision's, with its files and checksums.
    - "image-folder": any directory of images, root/train/CLASS/FILE and root/test/CLASS/FILE, or root/CLASS/FILE,
      of which a fifth of each class is for testing. Colour, in a fixed random order.

    Args:
        name: one of these.
        root: folder of data sets kept on disk ("data" by default), or the directory of images.
        download: whether torchvision may fetch missing files; nothing else ever opens a connection.
        dtype: of the images when they are floats.
        device: of all tensors.
        image_size: H = W of "image-folder": shorter sides are scaled to it and the middle is cut out.

    Raises:
        ValueError: the name is unknown, or images differ in size and no image_size is given.
        FileNotFoundError: files are missing; it says the line that fetches them.
        OSError: an image cannot be read; it says which.

    Example:
        >>> load_dataset("digits")
        Dataset('digits', train=(1200, 1, 8, 8), test=(597, 1, 8, 8), classes=10)

    Source:
        digits: Alpaydin & Kaynak 1998, doi 10.24432/C50P49 (CC BY 4.0); mnist1d: Greydanus & Kobak, arXiv
        2011.14439; MNIST: LeCun et al. 1998; Fashion-MNIST: arXiv 1708.07747; CIFAR: Krizhevsky 2009.

    """
    require_type("dtype", dtype, torch.dtype, "a torch.dtype")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating one, got {dtype}")
    require_device(device)
    raw = read(name, root, download, image_size)
    mean, sd = mean_and_sd(raw.pixels_train, raw.white)
    kept = torch.uint8 if raw.pixels_train.dtype == torch.uint8 else dtype
    train, test = (pixels.to(kept).to(device) for pixels in (raw.pixels_train, raw.pixels_test))
    parts = (train, raw.y_train.to(device), test, raw.y_test.to(device))
    return Dataset(name, *parts, len(raw.class_names), raw.class_names, raw.white, mean, sd, dtype)


def noisy_labels(y: Tensor, fraction: float, *, classes: int = 10, seed: int = 0) -> Tensor:
    """Replace a fraction of the labels, once and for all, by uniform draws from all classes.

    One in `classes` of the replaced labels is right by chance.

    Args:
        y: (N,) labels.
        fraction: of them to replace, between 0 and 1; rounded down to whole labels.
        classes: to draw from.
        seed: of the choice and of the draws.

    Returns:
        A new (N,) tensor.

    Raises:
        ValueError: fraction is not in [0, 1], or classes is below 1.

    Example:
        >>> y = torch.zeros(1000, dtype=torch.int64)
        >>> int((noisy_labels(y, 0.2) != y).sum()) in range(150, 200)
        True

    """
    require_type("y", y, Tensor, "a tensor")
    if y.is_floating_point() or y.ndim != 1:
        raise ValueError(f"y must be labels (N,), got {y.dtype} of shape {tuple(y.shape)}")
    if checked_number("fraction", fraction, least=0.0) > 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction!r}")
    checked_count("classes", classes)
    generator = torch.Generator().manual_seed(checked_seed(seed))
    chosen = torch.randperm(len(y), generator=generator)[: int(fraction * len(y))]
    drawn = torch.randint(classes, (len(chosen),), generator=generator)
    noisy = y.clone()
    noisy[chosen.to(y.device)] = drawn.to(y)
    return noisy
