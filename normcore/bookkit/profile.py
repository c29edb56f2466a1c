"""The size of the experiments, and the seed of every random draw: two environment variables.

Claims hold in each of three profiles; only resolution and error bars change.
"""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
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
    return Profile(name, "cuda" if name == "gpu" else "cpu", count_of("OMP_NUM_THREADS", 1, least=1))


def count_of(variable: str, default: int, *, least: int) -> int:
    """The integer that an environment variable holds."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{variable} must be an integer >= {least}, got {text!r}")
    return int(text)


def machine() -> str:
    """Processor, kernels in use, torch and its threads, in a line: what a failed claim is reported with."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    model = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = model[0] if model else platform.processor() or platform.machine()
    kernels, threads = torch.backends.cpu.get_cpu_capability(), current_profile().threads
    many = f"{threads} thread{'s' * (threads > 1)}"
    return f"{processor} ({kernels} kernels), torch {torch.__version__}, {many}"


STRIDE = 1_000_003
"""Distance of the seeds of neighbouring values of the knob: no chapter counts that far."""

_manual_seed: Callable[[int], torch.Generator] = torch.manual_seed
_default_rng = np.random.default_rng
_Generator: Any = torch.Generator


def seed_of_the_session() -> int:
    """Read NORMCORE_SEED; 0, the seeds of the stored outputs, where it is not set."""
    return count_of("NORMCORE_SEED", 0, least=0)


def shift_seeds(seed: int) -> None:
    """Move every seed that torch or numpy is given from now on; 0 restores them.

    A chapter draws in a hundred places, many of them defaults deep in the laboratory. Passing one number through all
    of them would miss some, so the generators themselves add it.
    """
    by = seed * STRIDE

    class Shifted(_Generator):  # type: ignore[misc]
        """torch's generator, with its seeds moved."""

        def manual_seed(self, seed: int) -> Any:
            return super().manual_seed(int(seed) + by)

    def manual_seed(seed: int) -> torch.Generator:
        return _manual_seed(int(seed) + by)

    def default_rng(seed: Any = None) -> np.random.Generator:
        return _default_rng(int(seed) + by if isinstance(seed, int | np.integer) else seed)

    torch.manual_seed = manual_seed if by else _manual_seed  # type: ignore[assignment]
    torch.Generator = Shifted if by else _Generator  # type: ignore[misc]
    np.random.default_rng = default_rng if by else _default_rng
