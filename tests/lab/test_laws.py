"""Laws and judges: closed forms, naive versions, and what chance alone gives."""

import math

import numpy as np
import pytest
from oracles_lab import label_gap, share_right

from normcore.lab import (
    fifths_left_out,
    forgetting_time,
    judge_null,
    judged_right,
    law_distance,
    law_ratio,
    mean_and_error,
)

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, (3, 24, 9))
CLASSES = {"classes": 4}


def answers(shares, runs, inputs=400, readings=2, seed=0):
    """Labels drawn from one law for each half of the runs."""
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.choice(len(share), (readings, runs, inputs), p=share) for share in shares], axis=1
    )


def test_distance_is_that_of_the_shares_counted_one_by_one():
    distance, _ = law_distance(LABELS, **CLASSES)
    naive = [label_gap(reading[:12], reading[12:], 4) for reading in LABELS]
    assert distance == pytest.approx(naive, rel=1e-5)  # the shares are float32


def test_laws_of_one_label_are_as_far_apart_as_laws_can_be():
    labels = np.repeat([[[0], [1]]], 10, axis=1)
    assert law_distance(labels)[0] == pytest.approx([2.0])


def test_the_floor_is_what_equal_laws_have_and_its_size_is_known():
    """Two shares of R runs differ by a normal of variance 2 p (1 - p) / R, whose mean size is known."""
    share = [0.5, 0.3, 0.2]
    for runs in (40, 160):
        distance, floor = law_distance(answers([share, share], runs), classes=3)
        expected = sum(math.sqrt(4 * p * (1 - p) / (math.pi * runs)) for p in share)
        assert floor == pytest.approx([expected] * 2, rel=0.05)
        assert distance == pytest.approx(floor, rel=0.06)


def test_the_floor_does_not_rise_with_the_distance():
    """The urns hold as many runs of the one set as of the other: laws far apart do not hide behind their floor."""
    labels = np.repeat([[[0], [1]]], 10, axis=1)
    assert law_distance(labels)[1] == pytest.approx([0.0])


def test_equal_laws_have_ratio_one_and_other_laws_more():
    one, other = [0.5, 0.3, 0.2], [0.3, 0.4, 0.3]
    value, error = law_ratio(answers([one, one], 40), classes=3)
    assert abs(value - 1) < max(4 * error, 0.06)
    value, error = law_ratio(answers([one, other], 40), classes=3)
    assert value - 4 * error > 1.5


def test_fifths_are_left_out_on_both_sides_and_give_the_jackknife_error():
    sets = np.arange(2)[:, None] * 100 + np.arange(10)
    parts = list(fifths_left_out(sets.reshape(1, 20, 1), classes=200))
    left = [sorted(set(sets.ravel()) - set(part.ravel().astype(int))) for part in parts]
    assert left == [[k, k + 5, k + 100, k + 105] for k in range(5)]
    values = RNG.integers(0, 2, (1, 400, 1))
    repeats = [part.mean() for part in fifths_left_out(values, classes=2)]
    exact = values.std(ddof=1) / math.sqrt(values.size)
    assert 0.2 * exact < 2 * np.std(repeats) < 3 * exact


def test_forgetting_time_of_an_exponential_decay():
    clock = np.linspace(0, 5, 401)
    time = forgetting_time(clock, 0.1 + 2 * np.exp(-3 * clock), np.full(401, 0.1))
    assert time == pytest.approx(math.log(10) / 3, rel=1e-3)
    assert forgetting_time([0, 1], [2.0, 1.9], [0.1, 0.1]) == math.inf


def test_a_judge_is_right_as_often_as_counted_child_by_child():
    points = RNG.standard_normal((3, 2, 4, 5)) + 0.5 * RNG.standard_normal((3, 2, 1, 5))
    assert judged_right(points).tolist() == [share_right(pair) for pair in points]


def test_children_without_parents_are_judged_right_half_of_the_time():
    """Also where the children are few, of whom leaving one out on one side only would make the stranger nearer."""
    points = np.random.default_rng(1).standard_normal((2_000, 2, 3, 20))
    share, error = mean_and_error(judged_right(points))
    assert abs(share - 0.5) < 4 * error < 0.03
    careless = (points[:, 0, :1] - points[:, 1].mean(axis=1, keepdims=True))[:, 0]
    own = points[:, 0, 0] - points[:, 0, 1:].mean(axis=1)
    assert np.mean((own**2).sum(axis=1) < (careless**2).sum(axis=1)) < 0.4


def test_parents_far_apart_are_told_apart_and_equal_points_are_ties():
    far = RNG.standard_normal((2, 2, 5, 3)) + 100 * np.arange(2)[:, None, None]
    assert judged_right(far).tolist() == [1.0, 1.0]
    assert judged_right(np.ones((1, 2, 5, 3))).tolist() == [0.5]


def test_the_null_is_one_half_and_as_wide_as_chance_makes_it():
    points = RNG.standard_normal((12, 2, 10, 40))
    null = judge_null(points, draws=400)
    assert abs(null.mean() - 0.5) < 4 * null.std() / 20
    many = judged_right(np.random.default_rng(2).standard_normal((1_200, 2, 10, 40)))
    spread = many.reshape(100, 12).mean(axis=1).std()
    assert null.std() == pytest.approx(spread, rel=0.3)


def test_the_null_does_not_see_the_parents():
    far = RNG.standard_normal((12, 2, 10, 40)) + 100 * np.arange(2)[:, None, None]
    null = judge_null(far)
    assert abs(null.mean() - 0.5) < 0.05 < 0.5 < judged_right(far).mean()


def test_lots_are_the_same_for_readings_of_one_shape():
    points = RNG.standard_normal((4, 2, 6, 9))
    assert judge_null(points).tolist() == pytest.approx(judge_null(3.0 * points + 1).tolist())
    assert judge_null(points).tolist() != judge_null(points, seed=1).tolist()


def test_mean_and_error():
    values = RNG.standard_normal((4, 5))
    assert mean_and_error(values) == pytest.approx((values.mean(), values.std(ddof=1) / math.sqrt(20)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: law_distance(LABELS[:, :22]),
            ValueError,
            "half of the runs of labels, must be even, got 11",
        ),
        (
            lambda: law_distance(LABELS[0]),
            ValueError,
            r"labels must be \(readings, 2R, N\), got shape \(24, 9\)",
        ),
        (
            lambda: law_distance(LABELS, classes=3),
            ValueError,
            "labels must be finite and >= 0 and < 3, got 3",
        ),
        (lambda: law_distance(LABELS / 2), ValueError, "labels must be whole numbers, got"),
        (lambda: law_distance(LABELS * np.nan), ValueError, "labels must be finite"),
        (lambda: law_distance(None), TypeError, "labels must be a number or an array"),
        (lambda: law_distance(LABELS, classes=0), ValueError, "classes must be >= 1, got 0"),
        (lambda: law_ratio(LABELS[:, :8]), ValueError, "half of the runs of labels, must be >= 5, got 4"),
        (lambda: list(fifths_left_out(LABELS[:, :8])), ValueError, "must be >= 5, got 4"),
        (
            lambda: forgetting_time([0, 1], [1, 2, 3], [0, 0]),
            ValueError,
            "clock, distance and floor must be of",
        ),
        (
            lambda: forgetting_time([0, 1], [1, 0], [1, 0]),
            ValueError,
            "distance must be above its floor at first",
        ),
        (lambda: forgetting_time([0, None], [1, 0], [0, 0]), TypeError, "clock must be a number or an array"),
        (lambda: judged_right(np.ones((1, 3, 4, 5))), ValueError, r"points must be \(pairs, 2, .* got shape"),
        (lambda: judged_right(np.ones((1, 2, 1, 5))), ValueError, "at least 2 children"),
        (lambda: judged_right(np.full((1, 2, 3, 5), np.inf)), ValueError, "points must be finite, got inf"),
        (lambda: judge_null(np.ones((1, 2, 3, 5)), draws=0), ValueError, "draws must be >= 1, got 0"),
        (lambda: judge_null(np.ones((1, 2, 3, 5)), seed=-1), ValueError, "seed must be >= 0, got -1"),
        (lambda: mean_and_error([1.0]), ValueError, "values must be at least two, got 1"),
        (lambda: mean_and_error([1.0, np.nan]), ValueError, "values must be finite, got nan"),
        (lambda: mean_and_error("ab"), TypeError, "values must be a number or an array"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
