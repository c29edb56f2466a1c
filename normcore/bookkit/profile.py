"""The size of the experiments:

One environment variable, three profiles. Claims hold in every profile; only resolution and error bars change.
"""

import os
from dataclasses import dataclass
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
        threads: of torch; 1 keeps float sums, and so trajectories, the same from machine to machine.

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
    """Read NORMCORE_PROFILE; "ci" where it is not set.

    Raises:
        ValueError: the name is unknown, or "gpu" without a CUDA device.

    """
    name = os.environ.get("NORMCORE_PROFILE", "ci")
    if name not in NAMES:
        raise ValueError(f"NORMCORE_PROFILE must be one of {list(NAMES)}, got {name!r}")
    if name == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "NORMCORE_PROFILE=gpu needs a CUDA device, got none; use NORMCORE_PROFILE=full on a CPU"
        )
    return Profile(name, "cuda" if name == "gpu" else "cpu")
