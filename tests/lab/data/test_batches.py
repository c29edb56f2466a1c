"""Batches that are made when asked for."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from normcore.lab import load_dataset
from normcore.lab.data import batches as module
from normcore.lab.data.batches import augment

DATA = load_dataset("digits")


def same(a, b):
    """Whether two batches have the same bits."""
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def table(steps, batch_size, seed, count=1200):
    """All draws with replacement at once, as a list comprehension would take them."""
    return torch.randint(count, (steps, batch_size), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "dtype, seed", [(torch.float32, 0), (torch.float64, 3), (torch.float32, -7), (torch.float32, 2**40)]
)
def test_by_default_they_are_rows_of_one_table(dtype, seed):
    data = load_dataset("digits", dtype=dtype)
    rows = table(40, 64, seed)
    for got, i in zip(data.batches(40, 64, seed), rows, strict=True):
        assert same(got, (data.x_train[i], data.y_train[i]))
        assert got[0].is_contiguous() and got[0].dtype == dtype


@pytest.mark.parametrize("order", [range(100), range(99, -1, -1), [50, 3, 99, 98, 3, 0, 51]])
def test_blocks_leave_no_seam(monkeypatch, order):
    monkeypatch.setattr(module, "BLOCK", 30)  # 4 rows of 7
    lazy, rows = DATA.batches(100, 7, seed=2), table(100, 7, 2)
    for t in order:
        assert same(lazy[t], (DATA.x_train[rows[t]], DATA.y_train[rows[t]]))


def test_memory_does_not_grow_with_steps():
    for steps in (10_000, 100_000):
        lazy, rows = DATA.batches(steps, 128), table(steps, 128, 0)
        assert torch.equal(lazy[steps - 1][1], DATA.y_train[rows[-1]])
        held = pickle.dumps(lazy.draw)
        assert len(held) < 4.5e6 + 6_000 * steps / 8_192
    assert rows.numel() * rows.element_size() > 1e8  # the table itself


def test_it_is_a_sequence():
    lazy = DATA.batches(10, 5, crop=1, flip=True)
    whole = list(lazy)
    assert len(lazy) == len(whole) == 10 and repr(lazy) == "Batches(10 of 5)"
    assert same(lazy[-1], whole[9]) and same(next(reversed(lazy)), whole[9])
    for part in (slice(3, 7), slice(None, None, 3), slice(8, None), slice(None, None, -1), slice(4, 4)):
        assert all(same(a, b) for a, b in zip(lazy[part], whole[part], strict=True))
    assert same(lazy[2:8][3:][1], whole[6])
    for t in (10, -11):
        with pytest.raises(IndexError, match="out of range"):
            lazy[t]


@pytest.mark.parametrize("options", [{}, dict(replacement=False), dict(crop=2, flip=True), dict(flip=True)])
def test_a_resumed_run_sees_the_same_batches(options):
    first, resumed, longer = (DATA.batches(steps, 100, 4, **options) for steps in (40, 40, 90))
    straight = list(first)
    for t in (39, 25, 26, 0):  # not from the start, not in order
        assert same(resumed[t], straight[t]) and same(longer[t], straight[t])
    copy = pickle.loads(pickle.dumps(first))
    assert same(copy[30], straight[30])
    other = DATA.batches(40, 100, 5, **options)
    assert not same(other[0], straight[0]) and not same(straight[0], straight[1])


def test_threads_may_share_them(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 64)
    for options in ({}, dict(replacement=False)):
        lazy, alone = DATA.batches(300, 32, **options), list(DATA.batches(300, 32, **options))
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(lambda t: lazy[t], [t * 7 % 300 for t in range(300)]))
        assert all(same(got[t], alone[t * 7 % 300]) for t in range(300))


def test_without_replacement_an_epoch_has_every_example_once():
    data = DATA.subset(100)
    rows = {tuple(x.flatten().tolist()) for x in data.x_train}
    lazy = data.batches(9, 33, replacement=False)  # 3 batches an epoch, 1 example dropped
    epochs = [torch.cat([x for x, _ in lazy[3 * e : 3 * e + 3]]).flatten(1).tolist() for e in range(3)]
    for epoch in epochs:
        assert len(epoch) == 99 == len({tuple(x) for x in epoch} & rows)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    drawn = data.batches(3, 33)
    assert len(torch.cat([x for x, _ in drawn]).unique(dim=0)) < 90  # with replacement it has not


def test_augmentation_comes_before_the_standardisation_and_leaves_the_draws():
    plain, moved = DATA.batches(5, 200, seed=1), DATA.batches(5, 200, seed=1, crop=2, flip=True)
    rows = table(5, 200, 1)
    for t in range(5):
        assert torch.equal(plain[t][1], moved[t][1])
        bytes_ = augment(DATA.pixels_train[rows[t]], crop=2, flip=True, seed=1, t=t)
        assert torch.equal(moved[t][0], DATA.standardise(bytes_))
    black = (0 - DATA.mean) / DATA.sd
    full = DATA.batches(1, 200, crop=8)[0][0]
    assert float(full.min()) == pytest.approx(black, rel=1e-6)
    assert (full == 0).sum() == 0  # a zero pad after the standardisation would be grey


def test_bad_input():
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        DATA.batches(0, 5)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got -1"):
        DATA.batches(5, -1)
    with pytest.raises(ValueError, match="batch_size must be <= 1200 without replacement, got 1201"):
        DATA.batches(5, 1201, replacement=False)
    with pytest.raises(ValueError, match="crop must be >= 0, got -2"):
        DATA.batches(5, 5, crop=-2)
    with pytest.raises(TypeError, match="seed must be an integer, got 1.5"):
        DATA.batches(5, 5, seed=1.5)
    with pytest.raises(TypeError, match="crop must be an integer, got nan"):
        DATA.batches(5, 5, crop=float("nan"))
    assert same(DATA.batches(5, 5, seed=np.int64(3))[0], DATA.batches(5, 5, seed=3)[0])
