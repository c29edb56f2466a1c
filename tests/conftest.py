"""One thread: two cores are shared by two test workers, and sums keep their order. Real photographs."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import device  # noqa: F401  registers itself, before any test module runs a backward pass while it is collected
import pytest
import torch

torch.set_num_threads(1)
gc.disable()  # until all is imported and collected: nothing of that is garbage


def pytest_collection_finish():
    """Searching half a million objects, which stay, for garbage again and again takes longer than many a test."""
    gc.freeze()
    gc.enable()


SCRIPTS = ["integrations/two_trainers.py", "mutate.py", "pdf.py"]
"""They need libraries which their own tests skip without, and have no examples."""

NEED_FULLY_SHARD = [
    "sharded_runs.py",
    "test_sharded.py",
    "two_processes.py",
    "equivalence/test_optimizer_distributed.py",
]
collect_ignore = SCRIPTS + ([] if torch.__version__ >= (2, 6) else NEED_FULLY_SHARD)  # public since then

PER_CLASS = 20
"""Photographs of each class, for training and again for testing."""


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory):
    """CIFAR-10 as train/CLASS/FILE.jpg and test/CLASS/FILE.jpg, 20 of each class.

    NORMCORE_CIFAR10 names such a folder, or the one where `unpack_cifar10.py` lies beside its archives.
    """
    if "NORMCORE_CIFAR10" not in os.environ:
        pytest.skip("NORMCORE_CIFAR10 names no folder of photographs")
    source, folder = Path(os.environ["NORMCORE_CIFAR10"]), tmp_path_factory.mktemp("cifar10")
    if (unpack := source / "unpack_cifar10.py").exists():
        command = [sys.executable, str(unpack), str(folder), "--per-class", str(PER_CLASS)]
        subprocess.run(command, check=True, capture_output=True)
    elif (source / "train").is_dir() and (source / "test").is_dir():
        for classes in [*(source / "train").iterdir(), *(source / "test").iterdir()]:
            (few := folder / classes.relative_to(source)).mkdir(parents=True)
            for image in sorted(classes.iterdir())[:PER_CLASS]:
                (few / image.name).symlink_to(image.resolve())
    else:
        pytest.skip(
            f"needs CIFAR-10: neither unpack_cifar10.py nor train and test in {source} (NORMCORE_CIFAR10)"
        )
    return folder
