"""Rulers: how far two records or laws lie apart, which power one quantity follows another with, and whose child a net is."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normcore.checks import FloatArray, checked, checked_count, numbers, require


def gaps(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Measure the norm of the difference of two records (readings, ...) at each reading: (readings,) float64.

    Raises:
        ValueError: the shapes differ, as when one of the runs diverged.

    """
    return _gaps(a=a, b=b)


def _gaps(**records: ArrayLike) -> NDArray[np.float64]:
    """The norm of the difference of two records, by their names."""
    x, y = (numbers(name, record) for name, record in records.items())
    if x.shape != y.shape or not (x.ndim and x.size):
        raise ValueError(
            f"{' and '.join(records)} must be records of one shape, not empty, got {x.shape} and {y.shape}"
        )
    return np.asarray(np.linalg.norm((x - y).reshape(len(x), -1), axis=1))


def first_nan(record: ArrayLike) -> list[int | None]:
    """For each run the first reading of a record (readings, runs) that is NaN, or None."""
    lost = np.isnan(np.asarray(record, dtype=np.float64))
    return [int(run.argmax()) if run.any() else None for run in lost.T]


def max_gap(a: ArrayLike, b: ArrayLike) -> float:
    """Return max over t of |a_t - b_t|, nan where a reading is.

    Example:
        >>> max_gap([[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [4.0, 5.0]])
        5.0

    Raises:
        ValueError: as in `gaps`.

    """
    return float(gaps(a, b).max())


def relative_gap(a: ArrayLike, b: ArrayLike) -> float:
    """Return max over t of |a_t - b_t| / |a_t|.

    Example:
        >>> relative_gap([[3.0, 4.0], [0.0, 1.0]], [[3.0, 4.5], [0.0, 1.0]])
        0.1

    Raises:
        ValueError: as in `gaps`, or a reading of `a` is zero.

    """
    sizes = gaps(a, np.zeros_like(numbers("a", a)))
    if (sizes == 0).any():
        raise ValueError(f"a must not be zero, got 0 at reading {int((sizes == 0).argmax())}")
    return float((gaps(a, b) / sizes).max())


def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """Return the mean of independent values, of any shape, and its standard error.

    Raises:
        ValueError: there are fewer than two, or one is not finite.
        TypeError: they are no numbers.

    Example:
        >>> mean_and_error([1.0, 3.0])
        (2.0, 1.0)

    """
    array = checked("values", values)
    if array.size < 2:
        raise ValueError(f"values must be at least two, got {array.size}")
    return float(np.mean(array)), float(np.std(array, ddof=1) / np.sqrt(array.size))


def slope(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Fit log y = a + k log x by least squares to at least three points: (k, standard error of k).

    Raises:
        ValueError: lengths differ, fewer than three points, or a value that is not > 0.

    Example:
        >>> round(slope([1, 2, 4, 8], [3, 12, 48, 192])[0], 12)
        2.0

    """
    xs, ys = numbers("x", x), numbers("y", y)
    if xs.shape != ys.shape or xs.ndim != 1:
        raise ValueError(f"x and y must be of one length, got shapes {xs.shape} and {ys.shape}")
    if len(xs) < 3 or not (np.isfinite(xs * ys).all() and min(xs.min(), ys.min()) > 0):
        values = f"got {xs.tolist()} and {ys.tolist()}"
        raise ValueError(f"x and y must hold at least three finite values > 0, {values}")
    if xs.min() == xs.max():
        raise ValueError(f"x must hold values that differ, got {xs.tolist()}")
    (power, _), covariance = np.polyfit(np.log(xs), np.log(ys), 1, cov=True)
    return float(power), float(np.sqrt(covariance[0, 0]))


def roundings(a: ArrayLike, b: ArrayLike, twin: ArrayLike, *others: ArrayLike) -> float:
    """Measure the distance of two runs that theory calls equal in units of what one rounding becomes.

    Convention: the largest distance of `a` and `b` over that of `a` and its twin, the same run started one rounding
    error away (`rounding_twin`), all of one shape (readings, ...). Training amplifies both alike, so that a few units
    mean equality. One twin may end ten times nearer than another; of several the farthest counts.

    Raises:
        ValueError: as in `gaps`, or no twin differs from `a`.

    Example:
        >>> roundings([1.0, 2.0], [1.0, 2.5], [1.0, 2.25])
        2.0

    """
    unit = max(float(_gaps(a=a, twin=each).max()) for each in (twin, *others))
    if not unit > 0:
        raise ValueError(f"twin must differ from a by a rounding, got a distance of {unit}")
    return max_gap(a, b) / unit


URNS = 20
"""Draws behind a floor."""

FIFTHS = 5
"""Groups that are left out in turn for a standard error."""


def law_distance(labels: ArrayLike, *, classes: int = 10) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Measure the L1 distance of the label laws of two sets of runs, and what equal laws would have.

    Convention: for each input the shares of the runs of a set that answer 0, 1, ... are its law; the distance is the sum
    over classes of the difference of shares, averaged over inputs, from 0 to 2. Shares of few runs are rough, so that
    equal laws are apart too: the floor is the mean distance of two halves, drawn 20 times from both sets together,
    that each hold as many runs of the one as of the other. About 1/sqrt(R).

    Args:
        labels: (readings, 2R, N) answers to N inputs; the first R runs are one set, the last R the other. R is even.
        classes: how many labels there are.

    Returns:
        (distance, floor), (readings,) each.

    Raises:
        ValueError: R is odd, or an entry is not a whole number below `classes`, as where a run diverged.
        TypeError: the labels are no numbers.

    Example:
        >>> labels = np.array([[[3], [3], [3], [3], [3], [3], [5], [5]]])  # four runs say 3; half of four others
        >>> float(law_distance(labels)[0][0])
        1.0

    Source: Li, Lyu and Arora (2020), arXiv 2010.02916, who compare such laws; the floor from halves is ours.

    """
    answers = _answers(labels, classes)
    half = answers.shape[1] // 2
    require("R, half of the runs of labels,", half, "even", half % 2 == 0)
    draw = np.random.default_rng(0)
    mixed = [
        np.concatenate([draw.permutation(np.repeat([1, -1], half // 2)) for _ in range(2)])
        for _ in range(URNS)
    ]
    sides = np.array([np.repeat([1, -1], half), *mixed], dtype=np.float32)
    shown = (answers[..., None] == np.arange(classes)).astype(np.float32)
    apart = np.abs(np.tensordot(sides, shown, (1, 1))).sum(axis=-1).mean(axis=-1) / half
    return apart[0], apart[1:].mean(axis=0)


def law_ratio(labels: ArrayLike, *, classes: int = 10) -> tuple[float, float]:
    """Divide the distance of two laws by its floor: 1, to a few percent, where the laws are equal.

    Args:
        labels: as in `law_distance`, with R and the R that `fifths_left_out` leaves both even.
        classes: how many labels there are.

    Returns:
        (mean over the readings, its standard error from leaving out fifths of the runs).

    Raises:
        ValueError: as in `law_distance`, or R < 5.

    """
    value, *repeats = [
        float(np.divide(*law_distance(part, classes=classes)).mean())
        for part in (labels, *fifths_left_out(labels, classes=classes))
    ]
    return value, 2 * float(np.std(repeats))


def fifths_left_out(labels: ArrayLike, *, classes: int = 10) -> list[FloatArray]:
    """Leave a fifth of the runs of both sets out, five times: a statistic's standard error is twice the `std` of these.

    That is the jackknife over five groups: (5 - 1) times the variance, and the root of it.

    Args:
        labels: as in `law_distance`; run r of a set belongs to the fifth r mod 5.
        classes: how many labels there are.

    Returns:
        Five times labels, without a fifth each.

    Raises:
        ValueError: as in `law_distance`, or R < 5.

    Example:
        >>> [part.shape for part in fifths_left_out(np.zeros((3, 20, 7)))][0]
        (3, 16, 7)

    """
    sets = np.split(_answers(labels, classes), 2, axis=1)
    runs = sets[0].shape[1]
    require("R, half of the runs of labels,", runs, f">= {FIFTHS}", runs >= FIFTHS)
    kept = [np.arange(runs) % FIFTHS != fifth for fifth in range(FIFTHS)]
    return [np.concatenate([own[:, these] for own in sets], axis=1) for these in kept]


def forgetting_time(clock: ArrayLike, distance: ArrayLike, floor: ArrayLike) -> float:
    """Find when the excess of a distance over its floor has fallen to a tenth of what it was first.

    Args:
        clock: (readings,) increasing times.
        distance: (readings,) of two laws.
        floor: (readings,) of it.

    Returns:
        The time, linear between readings; inf where the excess has not fallen so far.

    Raises:
        ValueError: the shapes differ, or the first distance is not above its floor.

    Example:
        >>> forgetting_time([0.0, 1.0, 2.0], [1.1, 0.3, 0.1], [0.1, 0.1, 0.1])
        1.5

    """
    time, gap, least = checked("clock", clock), checked("distance", distance), checked("floor", floor)
    if time.ndim != 1 or not time.shape == gap.shape == least.shape:
        shapes = f"{time.shape}, {gap.shape} and {least.shape}"
        raise ValueError(f"clock, distance and floor must be of one length, got shapes {shapes}")
    excess = gap - least
    require("distance", gap[:1], "above its floor at first", excess[:1] > 0)
    goal = 0.1 * excess[0]
    if not (excess < goal).any():
        return math.inf
    i = int(np.argmax(excess < goal))
    return float(np.interp(-goal, -excess[[i - 1, i]], time[[i - 1, i]]))


def judged_right(points: ArrayLike) -> FloatArray:
    """Count how often a judge names the right parent: the one whose other children are nearer in the mean.

    The judge compares a child with the mean of its siblings and with the mean of as many children of the other parent,
    one of them left out. Then the groups can be exchanged, and who knows nothing is right half of the time.

    Args:
        points: (pairs, 2, children, d), what the judge sees of each child of the two parents of a pair.

    Returns:
        (pairs,) shares; a tie counts as half.

    Raises:
        ValueError: the shape is another, a parent has fewer than two children, or an entry is not finite.

    Example:
        >>> judged_right([[[[0.0], [0.1]], [[1.0], [1.1]]]])
        array([1.])

    """
    seen = _points(points)
    children = seen.shape[2]
    others = (seen.sum(axis=2, keepdims=True) - seen) / (children - 1)
    own = ((seen - others) ** 2).sum(axis=-1)
    strange = ((seen - others[:, ::-1]) ** 2).sum(axis=-1)
    share: FloatArray = ((own < strange) + 0.5 * (own == strange)).mean(axis=(1, 2))
    return share


def judge_null(points: ArrayLike, *, draws: int = 200, seed: int = 0) -> FloatArray:
    """Let the judge guess where there is nothing to know: the children of each pair get their parents by lot.

    The mean of these scores is one half whatever the points are; their spread is what chance can do. Equal seeds and
    shapes are equal lots, so that scores of several readings of the same children may be averaged draw by draw.

    Args:
        points: as in `judged_right`.
        draws: how many lots.
        seed: of the lots.

    Returns:
        (draws,) shares judged right, mean of the pairs.

    Raises:
        ValueError: as in `judged_right`, or draws is below 1.

    """
    seen = _points(points)
    pairs, _, children, _ = seen.shape
    together, lots = 2 * children, (checked_count("draws", draws), pairs, 2 * children)
    rows = seen.reshape(pairs, together, -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    # The judge sees distances alone, and those of so many points fit into as many coordinates.
    values, vectors = np.linalg.eigh(rows @ rows.transpose(0, 2, 1))
    few = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    generator = np.random.default_rng(checked_count("seed", seed, least=0))
    order = generator.permuted(np.broadcast_to(np.arange(together), lots), axis=2)
    dealt = np.take_along_axis(few[None], order[..., None], axis=2)
    scores = judged_right(dealt.reshape(-1, 2, children, together)).reshape(draws, pairs)
    return np.asarray(scores.mean(axis=1))


def _answers(labels: ArrayLike, classes: int) -> FloatArray:
    answers = checked("labels", labels, least=0, below=checked_count("classes", classes))
    require("labels", answers, "whole numbers", answers == np.floor(answers))
    if answers.ndim != 3 or answers.shape[1] % 2 or not answers.size:
        raise ValueError(f"labels must be (readings, 2R, N), got shape {answers.shape}")
    return answers


def _points(points: ArrayLike) -> FloatArray:
    seen = checked("points", points)
    if seen.ndim != 4 or seen.shape[1] != 2 or seen.shape[2] < 2 or not seen.size:
        raise ValueError(f"points must be (pairs, 2, at least 2 children, d), got shape {seen.shape}")
    return seen
