"""What the chapters need: the profile, claims, and figures."""

import torch

from normcore.bookkit import plots
from normcore.bookkit.claims import claim, verdict_table
from normcore.bookkit.profile import Profile, current_profile
from normcore.bookkit.seeds import seed_of_the_session, shift_seeds


def setup() -> Profile:
    """Prepare a chapter: the figures' style, torch's threads, the session's seed. Prints one line and returns the profile."""
    profile = current_profile()
    torch.set_num_threads(profile.threads)
    shift_seeds(seed_of_the_session())
    plots.use_style()
    found = f"device {profile.device}" + (
        " (a GPU is there: NORMCORE_PROFILE=gpu)" if _idle_gpu(profile) else ""
    )
    print(
        f"{found}, profile {profile.name}, seed {seed_of_the_session()}, torch {torch.__version__.split('+')[0]}"
    )
    return profile


def _idle_gpu(profile: Profile) -> bool:
    """Whether there is a GPU that the profile leaves alone."""
    return profile.device == "cpu" and torch.cuda.is_available()


__all__ = [
    "Profile",
    "claim",
    "current_profile",
    "plots",
    "setup",
    "verdict_table",
]
