"""The size of the experiments: one environment variable, three profiles.

Claims hold in every profile; only resolution and error bars change.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
NAMES = ("ci", "full", "gpu")


@dataclass(frozen=True)
class Profile:
    """What a chapter may spend.

    Attributes:
        name: "ci" (two CPU cores), "full" (a workstation) or "gpu".
        device: where tensors live.
        threads: of torch; with 1 float sums keep their order.

    """

    name: str
    device: str
    threads: int = 1

    def pick(self, *, ci: T, full: T | None = None, gpu: T | None = None) -> T:
        """The value for this profile; a profile without one takes that of the next smaller.

        Example:
            >>> Profile("full", "cpu").pick(ci=50, gpu=5000)
            50

        """
        full = ci if full is None else full
        gpu = full if gpu is None else gpu
        return {"ci": ci, "full": full, "gpu": gpu}[self.name]


def current_profile() -> Profile:
    """Read NORMCORE_PROFILE ("ci" where it is not set) and OMP_NUM_THREADS (1).

    Raises:
        ValueError: the name is unknown, "gpu" without a CUDA device, or threads no integer >= 1.

    """
    name = os.environ.get("NORMCORE_PROFILE", "ci")
    if name not in NAMES:
        raise ValueError(f"NORMCORE_PROFILE must be one of {list(NAMES)}, got {name!r}")
    if name == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "NORMCORE_PROFILE=gpu needs a CUDA device, got none; use NORMCORE_PROFILE=full on a CPU"
        )
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    if not threads.isdecimal() or int(threads) < 1:
        raise ValueError(f"OMP_NUM_THREADS must be an integer >= 1, got {threads!r}")
    return Profile(name, "cuda" if name == "gpu" else "cpu", int(threads))


def machine() -> str:
    """Processor, kernels in use, torch and its threads, in a line: what a failed claim is reported with."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    model = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = model[0] if model else platform.processor() or platform.machine()
    kernels = torch.backends.cpu.get_cpu_capability()
    threads = current_profile().threads
    return (
        f"{processor} ({kernels} kernels), torch {torch.__version__}, {threads} thread{'s' * (threads > 1)}"
    )
