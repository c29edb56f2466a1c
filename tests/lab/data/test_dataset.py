"""Data sets as tensors, standardised."""

import dataclasses
import pickle

import pytest
import torch
from sklearn.datasets import load_digits

from normcore.lab import load_dataset


def test_digits_are_the_real_ones_standardised():
    data = load_dataset("digits", dtype=torch.float64)
    assert data.x_train.shape == (1200, 1, 8, 8) and data.x_test.shape == (597, 1, 8, 8)
    assert float(data.x_train.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(data.x_train.std()) == pytest.approx(1.0, abs=1e-12)
    ours = torch.cat([data.pixels_train, data.pixels_test]).flatten(1).tolist()
    labels = torch.cat([data.y_train, data.y_test]).tolist()
    raw, targets = load_digits(return_X_y=True)
    pairs = sorted((*row, label) for row, label in zip(ours, labels, strict=True))
    want = sorted((*map(int, row), int(y)) for row, y in zip(raw, targets, strict=True))
    assert pairs == want  # every image with its own label, each once


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_floats_are_the_formula_in_float64_rounded_once(dtype):
    data = load_dataset("digits", dtype=dtype)
    images = data.pixels_train.to(torch.float64) / 16
    assert (data.mean, data.sd) == (float(images.mean()), float(images.std()))
    assert torch.equal(data.x_train, ((images - images.mean()) / images.std()).to(dtype))
    test = data.pixels_test.to(torch.float64) / 16
    assert torch.equal(data.x_test, ((test - images.mean()) / images.std()).to(dtype))
    assert data.x_train is data.x_train and data.x_test.dtype == dtype


def test_the_order_is_shuffled_but_fixed():
    data, again = load_dataset("digits"), load_dataset("digits")
    assert torch.equal(data.x_train, again.x_train) and torch.equal(data.y_test, again.y_test)
    assert data.y_train[:10].tolist() != load_digits().target[:10].tolist()
    assert int(data.y_test.bincount().min()) > 40  # all classes in the test part too


def test_a_data_set_is_frozen_small_and_can_be_sent():
    data = load_dataset("digits")
    assert data.pixels_train.dtype == torch.uint8 and data.y_train.dtype == torch.int64
    assert data.class_names == tuple("0123456789") and data.classes == 10
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'classes'"):
        data.classes = 3
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.x_test, data.x_test) and repr(copy) == repr(data)


def pairs(x, y):
    """Images with their labels, as a set."""
    return {(*row, label) for row, label in zip(x.flatten(1).tolist(), y.tolist(), strict=True)}


def test_a_subset_is_balanced_and_keeps_the_floats():
    data = load_dataset("digits")
    small, same, other = data.subset(100, 50), data.subset(100, 50), data.subset(100, 50, seed=1)
    assert small.y_train.bincount().tolist() == [10] * 10 and small.y_test.bincount().tolist() == [5] * 10
    assert torch.equal(small.x_train, same.x_train) and not torch.equal(small.x_train, other.x_train)
    assert torch.equal(data.subset(30).x_train, small.x_train[:30])
    assert (small.mean, small.sd) == (data.mean, data.sd)
    known = pairs(data.x_train, data.y_train)
    assert len(pairs(small.x_train, small.y_train) & known) == 100
    part = data.subset(test=10)
    assert torch.equal(part.x_train, data.x_train) and len(part.x_test) == 10
    batch = small.batches(1, 64, replacement=False)[0]
    assert len(pairs(*batch) & pairs(small.x_train, small.y_train)) == 64


def test_batches_repeat_with_the_seed_only():
    data = load_dataset("digits")
    a, b, c = (data.batches(3, 5, seed=seed) for seed in (1, 1, 2))
    same = [torch.equal(p[0], q[0]) and torch.equal(p[1], q[1]) for p, q in zip(a, b, strict=True)]
    assert all(same) and not torch.equal(a[0][0], c[0][0])
    before = torch.get_rng_state()
    longer = data.batches(7, 5, seed=1)
    assert torch.equal(longer[2][0], a[2][0])
    assert torch.equal(before, torch.get_rng_state())


def test_batches_are_drawn_with_replacement_and_keep_labels_with_images():
    data = load_dataset("digits")
    (x, y) = data.batches(1, 3000)[0]
    assert len(torch.unique(x.flatten(1), dim=0)) < 1200 < len(x)
    for image, label in zip(x[:20], y[:20], strict=True):
        match = (data.x_train == image).flatten(1).all(1)
        assert int(label) in data.y_train[match].tolist()


def test_bad_input():
    names = "'cifar10', 'cifar100', 'digits', 'fashion-mnist', 'image-folder', 'mnist', 'mnist1d'"
    with pytest.raises(ValueError, match=rf"name must be one of \[{names}\], got 'letters'"):
        load_dataset("letters")
    with pytest.raises(ValueError, match=r"dtype must be a floating one, got torch\.int64"):
        load_dataset("digits", dtype=torch.int64)
    with pytest.raises(ValueError, match="image_size must be >= 1, and is for image-folder only, got 32"):
        load_dataset("digits", image_size=32)
    with pytest.raises(ValueError, match="image_size must be >= 1, .* got 0"):
        load_dataset("image-folder", "pictures", image_size=0)
    data = load_dataset("digits")
    with pytest.raises(ValueError, match="train must be <= 1200, got 1201"):
        data.subset(1201)
    with pytest.raises(ValueError, match="test must be >= 1, got 0"):
        data.subset(test=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_bits():
    here, there = load_dataset("digits"), load_dataset("digits", device="cuda")
    assert torch.equal(here.x_train, there.x_train.cpu())
    for options in ({}, dict(crop=1, flip=True), dict(replacement=False)):
        for a, b in zip(here.batches(5, 32, **options), there.batches(5, 32, **options), strict=True):
            assert torch.equal(a[0], b[0].cpu()) and torch.equal(a[1], b[1].cpu())
