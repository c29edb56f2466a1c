"""Profiles are read from one variable; one knob moves every seed."""

import numpy as np
import pytest
import torch

from normcore import lab
from normcore.bookkit.profile import STRIDE, Profile, current_profile, seed_of_the_session, shift_seeds


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


@pytest.fixture(autouse=True)
def restored():
    yield
    shift_seeds(0)


def draws():
    """One number from each kind of generator, and one from deep in the laboratory."""
    torch.manual_seed(3)
    return [
        float(torch.rand(())),
        float(torch.rand((), generator=torch.Generator().manual_seed(3))),
        float(np.random.default_rng(3).random()),
        float(lab.weight_norm(lab.mlp((8, 8, 2)))),
        float(lab.Stack((8, 8, 2), [0]).weights[0].detach().sum()),
    ]


def test_each_generator_moves_and_comes_back():
    own = draws()
    shift_seeds(1)
    moved = draws()
    assert all(a != b for a, b in zip(own, moved, strict=True))
    shift_seeds(1)  # set-up cell run twice
    assert draws() == moved
    shift_seeds(2)
    assert all(a != b for a, b in zip(moved, draws(), strict=True))
    shift_seeds(0)
    assert draws() == own


def test_a_moved_seed_is_an_ordinary_seed():
    expected = float(np.random.default_rng(3 + STRIDE).random())
    shift_seeds(1)
    assert float(np.random.default_rng(3).random()) == expected
    generator = torch.Generator()
    assert isinstance(generator.manual_seed(0), torch.Generator)
    assert float(np.random.default_rng([3, 4]).random()) == float(np.random.default_rng([3, 4]).random())


def test_the_knob_is_an_environment_variable(monkeypatch):
    monkeypatch.delenv("NORMCORE_SEED", raising=False)
    assert seed_of_the_session() == 0
    monkeypatch.setenv("NORMCORE_SEED", "7")
    assert seed_of_the_session() == 7
    for wrong in ("-1", "x", "1.5", ""):
        monkeypatch.setenv("NORMCORE_SEED", wrong)
        with pytest.raises(ValueError, match="NORMCORE_SEED must be an integer >= 0, got"):
            seed_of_the_session()
