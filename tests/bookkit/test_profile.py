"""Profiles are read from one variable."""

import pytest
import torch

from normcore.bookkit.profile import Profile, current_profile


def test_default_and_names(monkeypatch):
    monkeypatch.delenv("NORMCORE_PROFILE", raising=False)
    assert current_profile() == Profile("ci", "cpu")
    monkeypatch.setenv("NORMCORE_PROFILE", "full")
    assert current_profile().name == "full"
    monkeypatch.setenv("NORMCORE_PROFILE", "huge")
    with pytest.raises(
        ValueError, match=r"NORMCORE_PROFILE must be one of \['ci', 'full', 'gpu'\], got 'huge'"
    ):
        current_profile()


def test_gpu_needs_a_device(monkeypatch):
    monkeypatch.setenv("NORMCORE_PROFILE", "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="NORMCORE_PROFILE=gpu needs a CUDA device, got none"):
        current_profile()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert current_profile().device == "cuda"


def test_pick_falls_back_to_the_smaller_profile():
    assert Profile("gpu", "cuda").pick(ci=1, full=2) == 2
    assert Profile("full", "cpu").pick(ci=1, gpu=3) == 1
    assert Profile("ci", "cpu").pick(ci=1, full=2, gpu=3) == 1
