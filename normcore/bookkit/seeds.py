"""One knob for every random draw of a chapter: NORMCORE_SEED."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

STRIDE = 1_000_003
"""Distance of the seeds of neighbouring values of the knob: no chapter counts that far."""

_manual_seed: Callable[[int], torch.Generator] = torch.manual_seed
_default_rng = np.random.default_rng
_Generator: Any = torch.Generator


def seed_of_the_session() -> int:
    """Read NORMCORE_SEED; 0, the seeds of the stored outputs, where it is not set.

    Raises:
        ValueError: it is not an integer >= 0.

    """
    text = os.environ.get("NORMCORE_SEED", "0")
    if not text.isdecimal():
        raise ValueError(f"NORMCORE_SEED must be an integer >= 0, got {text!r}")
    return int(text)


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
