"""What the chapters need: the profile, claims, and figures."""

import torch

from normcore.bookkit import plots
from normcore.bookkit.claims import claim, verdict_table
from normcore.bookkit.profile import Profile, current_profile, seed_of_the_session, shift_seeds


def setup() -> Profile:
    """Prepare a chapter: the figures' style, torch's threads, the session's seed. Prints one line and returns the profile."""
    profile, seed = current_profile(), seed_of_the_session()
    torch.set_num_threads(profile.threads)
    shift_seeds(seed)
    plots.use_style()
    idle = profile.device == "cpu" and torch.cuda.is_available()
    found = f"device {profile.device}" + (" (a GPU is there: NORMCORE_PROFILE=gpu)" if idle else "")
    print(f"{found}, profile {profile.name}, seed {seed}, torch {torch.__version__.split('+')[0]}")
    return profile


__all__ = ["Profile", "claim", "current_profile", "plots", "setup", "verdict_table"]
