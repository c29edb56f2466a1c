"""Tiny data sets on disk, in the formats of MNIST and CIFAR."""

import hashlib
import pickle

import numpy as np
from torchvision import datasets

GREY = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}
COLOUR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
RNG = np.random.default_rng(0)


def write_idx(path, array):
    """A file of the MNIST family: two zero bytes, 8 for bytes, how many axes, their lengths, the bytes."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.tobytes())


def write_grey(name, root):
    """Twelve and five images, as MNIST is kept; returns the arrays."""
    raw = root / GREY[name].__name__ / "raw"
    raw.mkdir(parents=True)
    made = []
    for part, count in (("train", 12), ("t10k", 5)):
        images = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = RNG.integers(0, 10, count, dtype=np.uint8)
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
        made += [images[:, None], labels]
    return made


def write_colour(name, root, monkeypatch):
    """A few images, as CIFAR is kept, with checksums to match; returns the arrays."""
    kind = COLOUR[name]
    folder, key = root / kind.base_folder, "labels" if name == "cifar10" else "fine_labels"
    folder.mkdir(parents=True)
    made = []
    for attribute in ("train_list", "test_list"):
        listed, images, labels = [], [], []
        for filename, _ in getattr(kind, attribute):
            rows = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)
            targets = RNG.integers(0, 10, 4).tolist()
            listed.append([filename, write_pickle(folder / filename, {"data": rows, key: targets})])
            images.append(rows.reshape(4, 3, 32, 32))
            labels += targets
        monkeypatch.setattr(kind, attribute, listed)
        made += [np.concatenate(images), np.array(labels)]
    names = [f"kind {i}" for i in range(10 if name == "cifar10" else 100)]
    md5 = write_pickle(folder / kind.meta["filename"], {kind.meta["key"]: names})
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5})
    return made


def write_pickle(path, value):
    """Write it; returns the checksum."""
    path.write_bytes(pickle.dumps(value))
    return hashlib.md5(path.read_bytes()).hexdigest()
