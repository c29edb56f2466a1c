"""Real digits as tensors."""

import dataclasses

import pytest
import torch
from sklearn.datasets import load_digits

from normcore.lab import load_dataset


def test_digits_are_the_real_ones_standardised():
    data = load_dataset("digits", dtype=torch.float64)
    assert data.x_train.shape == (1200, 1, 8, 8) and data.x_test.shape == (597, 1, 8, 8)
    assert float(data.x_train.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(data.x_train.std()) == pytest.approx(1.0, abs=1e-12)
    ours = torch.cat([data.x_train, data.x_test]).flatten(1)
    labels = torch.cat([data.y_train, data.y_test])
    raw, targets = load_digits(return_X_y=True)
    scale = raw.std() / float(ours.std(correction=0))
    pixels = ((ours - ours.mean()) * scale + raw.mean()).round().int().tolist()
    pairs = sorted((*row, label) for row, label in zip(pixels, labels.tolist(), strict=True))
    want = sorted((*map(int, row), int(y)) for row, y in zip(raw, targets, strict=True))
    assert pairs == want  # every image with its own label, each once


def test_the_order_is_shuffled_but_fixed():
    data, again = load_dataset("digits"), load_dataset("digits")
    assert torch.equal(data.x_train, again.x_train) and torch.equal(data.y_test, again.y_test)
    assert data.y_train[:10].tolist() != load_digits().target[:10].tolist()
    assert int(data.y_test.bincount().min()) > 40  # all classes in the test part too


def test_a_data_set_is_frozen_and_has_the_dtype_asked_for():
    data = load_dataset("digits", dtype=torch.float64)
    assert data.x_test.dtype == torch.float64 and load_dataset("digits").x_test.dtype == torch.float32
    assert data.y_train.dtype == torch.int64
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'classes'"):
        data.classes = 3


def test_batches_repeat_with_the_seed_only():
    data = load_dataset("digits")
    a, b, c = (data.batches(3, 5, seed=seed) for seed in (1, 1, 2))
    same = [torch.equal(p[0], q[0]) and torch.equal(p[1], q[1]) for p, q in zip(a, b, strict=True)]
    assert all(same) and not torch.equal(a[0][0], c[0][0])
    before = torch.get_rng_state()
    longer = data.batches(7, 5, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(longer[2][0], a[2][0])


def test_batches_are_drawn_with_replacement_and_keep_labels_with_images():
    data = load_dataset("digits")
    (x, y) = data.batches(1, 3000)[0]
    assert len(torch.unique(x.flatten(1), dim=0)) < 1200 < len(x)
    for image, label in zip(x[:20], y[:20], strict=True):
        match = (data.x_train == image).flatten(1).all(1)
        assert int(label) in data.y_train[match].tolist()


def test_bad_input():
    with pytest.raises(ValueError, match=r"name must be one of \['digits'\], got 'letters'"):
        load_dataset("letters")
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        load_dataset("digits").batches(0, 5)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got -1"):
        load_dataset("digits").batches(5, -1)
