"""Time the in-memory loader against a torchvision DataLoader: `python benchmarks/loader.py [--images DIR]`.

Both make batches of 128 with RandomCrop(32, padding=4), RandomHorizontalFlip and Normalize, and feed one PreResNet-20.
DIR is a directory that `load_dataset("image-folder", DIR)` reads; without it the pixels are random. Ratios are taken in
one process, alternating, so that a busy machine moves both sides; the spread is printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from normcore import lab

BATCH = 128
Batch = tuple[Tensor, Tensor]


class Pictures(Dataset):
    """Images in memory as torchvision's CIFAR-10 keeps them: bytes, one PIL image made for each item."""

    def __init__(self, data: lab.Dataset, transform: Callable) -> None:
        """Keep the bytes."""
        self.pixels, self.labels, self.transform = data.pixels_train.cpu(), data.y_train.tolist(), transform

    def __len__(self) -> int:
        """How many."""
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """One image, augmented."""
        return self.transform(transforms.functional.to_pil_image(self.pixels[i])), self.labels[i]


def random_pictures(device: str) -> lab.Dataset:
    """Random bytes in the place of photographs."""
    pixels = torch.randint(256, (10_000, 3, 32, 32), dtype=torch.uint8).to(device)
    labels = torch.randint(10, (10_000,)).to(device)
    names = tuple(map(str, range(10)))
    numbers = dict(classes=10, class_names=names, white=255, mean=0.5, sd=0.29, dtype=torch.float32)
    return lab.Dataset("random", pixels, labels, pixels, labels, **numbers)


def workers_loop(source: Dataset, workers: int, device: str) -> Iterator[Batch]:
    """Batches of a DataLoader on the device, epoch after epoch, as the usual training loop makes them."""
    loader = DataLoader(
        source,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device == "cuda",
    )
    while True:
        for x, y in loader:
            yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def seconds(batches: Iterator[Batch], step: Callable[[Batch], object], steps: int, skip: int) -> float:
    """Seconds a step, after `skip` steps that use up what workers had made while nobody looked."""
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(skip):
        step(next(batches))
    synchronise()
    start = time.perf_counter()
    for _ in range(steps):
        step(next(batches))
    synchronise()
    elapsed = (time.perf_counter() - start) / steps
    time.sleep(1.0 if skip else 0.0)  # until the workers' queue is full and they rest
    return elapsed


def compare(
    title: str, pair: list[Iterator[Batch]], step: Callable, steps: int, skip: int, repeats: int
) -> None:
    """Print the time of a step with the DataLoader and with ours, and their ratio; the first one changes."""
    times = []
    for repeat in range(repeats):
        order = (0, 1) if repeat % 2 else (1, 0)
        taken = {which: seconds(pair[which], step, steps, 0 if which else skip) for which in order}
        times.append((taken[0], taken[1]))
    ratios = [theirs / ours for theirs, ours in times]
    theirs, ours = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    spread = f"median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{title}: {theirs:.1f} ms / {ours:.1f} ms, DataLoader / ours: {spread}", flush=True)


def main() -> None:
    """Data alone, then with a forward and a backward pass, for 0 and 2 workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a directory of images, all of one size")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--steps", type=int, help="steps in each repeat; by default 20, and 3 with the net on a CPU"
    )
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = options.images
    data = lab.load_dataset("image-folder", images, device=device) if images else random_pictures(device)
    size, mean, sd = data.pixels_train.shape[-1], [data.mean] * 3, [data.sd] * 3
    transform = transforms.Compose(
        [
            transforms.RandomCrop(size, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, sd),
        ]
    )
    net = lab.preresnet(20, width=16, in_channels=3).to(device)

    def train_step(batch: Batch) -> None:
        net.zero_grad()
        cross_entropy(net(batch[0]), batch[1]).backward()

    ours = iter(data.batches(10_000_000, BATCH, replacement=False, crop=4, flip=True))
    sources: dict[str, Dataset] = {"in memory": Pictures(data, transform)}
    if images:
        root = images / "train" if (images / "train").is_dir() else images
        sources["files"] = ImageFolder(str(root), transform)
    few = options.steps or (20 if device == "cuda" else 3)
    tasks = {"data alone": (lambda batch: None, options.steps or 20), "PreResNet-20": (train_step, few)}
    print(f"{data}, batch {BATCH}, {device}, {torch.get_num_threads()} thread(s)", flush=True)
    for kind, source in sources.items():
        for workers in (0, 2):
            theirs = workers_loop(source, workers, device)
            next(theirs), next(ours)
            for task, (step, steps) in tasks.items():
                title = f"{task}, images {kind}, {workers} workers"
                compare(title, [theirs, ours], step, steps, 2 * workers, options.repeats)
            theirs.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
