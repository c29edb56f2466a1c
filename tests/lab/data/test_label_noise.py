"""Label noise: how many, which, and always the same."""

import pytest
import torch

from normcore.lab.data.dataset import noisy_labels

Y = torch.arange(10).repeat(500)


def test_the_fraction_and_the_classes():
    noisy = noisy_labels(Y, 0.2)
    wrong = noisy != Y
    assert 0.9 * 1000 - 60 < int(wrong.sum()) < 0.9 * 1000 + 60  # a tenth is right by chance: 6 sigma
    counts = torch.bincount(noisy[wrong], minlength=10)
    assert counts.min() > 50 and counts.sum() == wrong.sum()
    assert torch.equal(noisy_labels(Y, 0.0), Y)
    assert noisy_labels(Y, 0.2) is not Y and torch.equal(Y, torch.arange(10).repeat(500))


def test_seeds():
    assert torch.equal(noisy_labels(Y, 0.2, seed=1), noisy_labels(Y, 0.2, seed=1))
    assert not torch.equal(noisy_labels(Y, 0.2, seed=1), noisy_labels(Y, 0.2, seed=2))


def test_bad_input():
    with pytest.raises(ValueError, match="fraction must be between 0 and 1, got 1.5"):
        noisy_labels(Y, 1.5)
    with pytest.raises(ValueError, match="classes must be >= 1, got 0"):
        noisy_labels(Y, 0.5, classes=0)
