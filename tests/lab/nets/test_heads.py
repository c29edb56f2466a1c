"""The head: its scale, and the simplex frame against its closed form."""

import math

import pytest
import torch

from normcore.lab.nets.layers import make_head, simplex_frame


def draw(classes, features, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return simplex_frame(classes, features)


@pytest.mark.parametrize(("classes", "features"), [(2, 1), (2, 5), (3, 2), (10, 9), (10, 64), (100, 99)])
def test_the_gram_matrix_is_the_closed_form(classes, features):
    frame = draw(classes, features)
    gram = classes / (classes - 1) * (torch.eye(classes, dtype=torch.float64) - 1 / classes)
    assert frame.shape == (classes, features) and frame.dtype == torch.float64
    assert torch.allclose(frame @ frame.T, gram, rtol=0, atol=1e-13)
    assert float(frame.sum(0).abs().max()) < 1e-13


def test_control_a_random_head_is_no_frame():
    weight = make_head(64, 10, "frozen").weight.detach()
    off = (weight @ weight.T)[~torch.eye(10, dtype=torch.bool)]
    assert float((off + 1 / 9).abs().max()) > 0.1


def test_positions_are_random_and_seeded():
    assert torch.equal(draw(4, 6, 1), draw(4, 6, 1)) and not torch.equal(draw(4, 6, 1), draw(4, 6, 2))
    mean = torch.stack([draw(3, 4, seed) for seed in range(400)]).mean(0)
    assert float(mean.abs().max()) < 0.13  # entries of variance 1/4: standard error 0.025


def test_random_rows_have_length_one_on_average():
    weight = make_head(400, 50, "frozen").weight
    assert float(weight.detach().std()) * math.sqrt(400) == pytest.approx(1.0, abs=0.03)  # 20,000 draws


def test_only_the_trained_head_is_trained():
    trained = [kind for kind in ("frozen", "etf", "trained") if make_head(16, 10, kind).weight.requires_grad]
    assert trained == ["trained"] and make_head(16, 10, "etf").bias is None


def test_a_frame_in_a_float32_net_is_exact_to_rounding():
    weight = make_head(16, 10, "etf").to(torch.float32).weight
    assert weight.dtype == torch.float32
    assert torch.allclose((weight @ weight.T).diagonal(), torch.ones(10), rtol=0, atol=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match="features must be >= classes - 1 for an 'etf' head, got 8 for 10"):
        make_head(8, 10, "etf")
    with pytest.raises(ValueError, match="classes must be >= 2 for an 'etf' head, got 1"):
        make_head(8, 1, "etf")
