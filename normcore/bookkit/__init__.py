"""What the chapters need: the profile, claims, and figures."""

import torch

from normcore.bookkit import plots
from normcore.bookkit.claims import ClaimError, claim, not_reproduced, verdict_table
from normcore.bookkit.profile import Profile, current_profile


def setup() -> Profile:
    """Prepare a chapter: the figures' style and one torch thread. Returns the profile."""
    profile = current_profile()
    torch.set_num_threads(profile.threads)
    plots.use_style()
    return profile


__all__ = [
    "ClaimError",
    "Profile",
    "claim",
    "current_profile",
    "not_reproduced",
    "plots",
    "setup",
    "verdict_table",
]
