"""Readings: squares, sums over groups and running means against a plain loop."""

import numpy as np
import pytest
import torch

from normcore.norm_dynamics.equilibrium import equilibrium
from normcore.norm_dynamics.rates import Rates
from normcore.norm_dynamics.readings import COLUMNS, WAITING, Raw, Readings, columns_of

SGD = Rates("sgd", 0.1, 0.02, 0.9)
ADAM = Rates("adamw", 0.01, 0.5, 0.9)
CPU = torch.device("cpu")


def raws(steps, rates, *, skipped=(), seed=0):
    """Random raw readings of 2 + 1 tensors, with gradients scaled by 8 and weights stored at half and full scale."""
    rng = np.random.default_rng(seed)
    for t in range(steps):
        norms = np.append(rng.uniform(1, 2, 12), [8.0, float(t in skipped)])
        yield Raw(torch.tensor(norms), rates, ((0.5, 0.25), (1.0, 1.0)))


def by_hand(readings, horizon):
    """The means, one reading at a time: (moved, expected, signal) of tensors 0, 1, 2 and groups 0, 1."""
    total, weight, decay = np.zeros((3, 5)), np.zeros(5), 1 - 1 / horizon
    for raw in readings:
        if float(raw.norms[-1]):
            continue
        before, grad, after, moved = raw.norms[:-2].numpy().reshape(4, 3).copy()
        x0, x1 = np.array([[0.5, 0.5, 1.0], [0.25, 0.25, 1.0]])
        squares = np.stack([before * x0, grad / x0 / 8.0, after * x1, moved * x1]) ** 2
        squares = np.column_stack([squares, squares[:, :2].sum(1), squares[:, 2]])
        for row, group in enumerate((0, 0, 1, 0, 1)):
            rates = raw.rates[group]
            if rates is None or rates.lr == 0:
                continue
            r, g, r_new, d = squares[:, row]
            h = rates.lr * rates.weight_decay
            if rates.family == "sgd":
                turn, signal = h / (1 + rates.momentum), g * r
            else:
                a, b = 1 - h, rates.momentum
                turn = (1 - a) * (1 - b) / (1 + a * b)
                inner = (r_new - r - d) / 2  # <w, dw>
                signal = (d + 2 * h * inner + h**2 * r) / rates.lr**2
            total[:, row] = decay * total[:, row] + np.array([d, 2 * turn * r, signal])
            weight[row] = decay * weight[row] + 1
    return total / weight, squares


@pytest.mark.parametrize("steps", [1, 7, WAITING + 30])
def test_means_are_those_of_a_loop(steps):
    readings = Readings([2, 1], 20, CPU)
    own = list(raws(steps, (SGD, ADAM)))
    for raw in own:
        readings.add(raw)
    readings.work_up()
    means, last = by_hand(own, 20)
    np.testing.assert_allclose((readings.sums / readings.weight).numpy(), means, rtol=1e-12)
    np.testing.assert_allclose(readings.last.numpy(), last, rtol=1e-14)


def test_parts_of_tensors_are_added_up_before_they_count():
    # Here all parts are alike: of a total of four, norms are twice those of the own part.
    whole = Readings([2, 1], 20, CPU)
    part = Readings([2, 1], 20, CPU, total=lambda squares: 4.0 * squares)
    for raw in raws(7, (SGD, ADAM), skipped=(3,)):
        part.add(raw)
        whole.add(raw._replace(norms=torch.cat([2.0 * raw.norms[:-2], raw.norms[-2:]])))
    part.work_up(), whole.work_up()
    np.testing.assert_allclose(part.last.numpy(), whole.last.numpy(), rtol=1e-14)
    np.testing.assert_allclose(part.sums.numpy(), whole.sums.numpy(), rtol=1e-12)
    assert float(part.sums[2, 0] / whole.sums[2, 0]) == pytest.approx(
        1.0
    )  # S is of the fourth power: 16, not 4


def test_what_does_not_count():
    # A skipped step, a group at rate 0, and a family without a closed form leave the means of the others alone.
    still = Rates("sgd", 0.0, 0.02, 0.9)
    own = [
        *raws(5, (SGD, still), skipped=(1, 4)),
        *raws(5, (SGD, None), seed=1),
        *raws(5, (SGD, SGD), seed=2),
    ]
    readings = Readings([2, 1], 20, CPU)
    for raw in own:
        readings.add(raw)
        if len(readings.waiting) == 3:
            readings.work_up()  # the batches do not matter
    readings.work_up()
    means, last = by_hand(own, 20)
    np.testing.assert_allclose((readings.sums / readings.weight).numpy(), means, rtol=1e-12)
    np.testing.assert_allclose(readings.last.numpy(), last, rtol=1e-14)
    assert readings.weight[2] == pytest.approx(sum(0.95**i for i in range(5)))


def test_a_skipped_step_is_not_the_last():
    readings = Readings([2, 1], 20, CPU)
    own = list(raws(4, (SGD, SGD), skipped=(3,)))
    for raw in own:
        readings.add(raw)
    readings.work_up()
    before = readings.last.clone()
    readings.add(next(raws(1, (SGD, SGD), skipped=(0,), seed=9)))
    readings.work_up()
    assert torch.equal(readings.last, before)
    np.testing.assert_allclose(before[2, 2], own[2].norms[8] ** 2, rtol=1e-14)


def test_infinite_gradients_of_a_skipped_step_do_not_spread():
    readings = Readings([2, 1], 20, CPU)
    first, bad = raws(2, (SGD, SGD), skipped=(1,))
    bad.norms[3:6] = torch.inf
    for raw in (first, bad):
        readings.add(raw)
    readings.work_up()
    assert readings.sums.isfinite().all() and readings.last.isfinite().all()


@pytest.mark.parametrize("damage", [torch.inf, torch.nan])
def test_what_is_not_finite_shows_and_leaves_the_means(damage):
    readings = Readings([2, 1], 20, CPU)
    own = list(raws(5, (SGD, ADAM)))
    own[3].norms[7] = own[3].norms[10] = damage  # |w'| and |dw| of tensor 1
    for raw in own:
        readings.add(raw)
    readings.work_up()
    clean = Readings([2, 1], 20, CPU)
    for raw in own[:3] + own[4:]:
        clean.add(raw)
    clean.work_up()
    means, theirs = readings.sums / readings.weight, clean.sums / clean.weight
    assert torch.allclose(
        means[:, [1, 3]], theirs[:, [1, 3]], rtol=1e-14
    )  # the tensor and its group: as if not read
    assert readings.weight[0] > readings.weight[1] == readings.weight[3]
    ended = Readings([2, 1], 20, CPU)
    for raw in own[:4]:
        ended.add(raw)
    ended.work_up()
    assert not ended.last[2, [1, 3]].isfinite().any() and ended.last[2, [0, 2, 4]].isfinite().all()


def test_columns():
    r, g = 4.0, 0.25
    state = equilibrium(0.1, 0.02, 0.9, grad_sq_norm=r * g)
    moved = r * (2 * np.sin(state.angle / 2)) ** 2
    table = np.array([[r], [g], [r], [moved], [moved], [moved], [r * g]])
    values = {name: float(np.ravel(value)[0]) for name, value in columns_of(SGD, table).items()}
    assert tuple(sorted(values)) == tuple(sorted(COLUMNS))
    assert values["norm"] == 2.0 and values["grad_norm"] == 0.5 and values["rho"] == 1.0
    assert values["angle"] == pytest.approx(state.angle, rel=1e-12) == values["equilibrium_angle"]
    assert values["equilibrium_norm"] == pytest.approx(state.norm)
    assert values["distance"] == pytest.approx(2.0 / state.norm - 1)
    assert values["effective_lr"] == pytest.approx(0.1 / 0.1 / 4.0) and values[
        "intrinsic_lr"
    ] == pytest.approx(0.02)
    assert values["steps_to_equilibrium"] > 0


def test_a_change_of_length_is_no_turn():
    table = np.array([[4.0], [0.0], [9.0], [1.0], [1.0], [1.0], [1.0]])
    assert columns_of(SGD, table)["angle"] == 0.0


@pytest.mark.parametrize(
    ("rates", "missing"),
    [
        (None, {"rho", "effective_lr", "equilibrium_norm"}),
        (Rates("sgd", 0.1, 0.0, 0.0), {"rho", "equilibrium_norm", "steps_to_equilibrium"}),
        (Rates("sgd", 0.0, 0.1, 0.0), {"equilibrium_norm", "distance"}),
        (Rates("sgd", 30.0, 0.1, 0.0), {"equilibrium_norm"}),  # beyond the stable range
    ],
)
def test_what_has_no_equilibrium_is_left_out(rates, missing):
    given = columns_of(rates, np.ones((7, 1)))
    assert not missing & set(given) and given["norm"] == 1.0
    if rates is not None and rates.lr == 0.0:
        assert given["rho"] == 1.0


def test_a_state_is_taken_whole_or_not_at_all():
    readings, others = Readings([2, 1], 20, CPU), Readings([2, 1], 20, CPU)
    for raw in raws(5, (SGD, ADAM)):
        readings.add(raw)
    for raw in raws(3, (SGD, ADAM), seed=1):
        others.add(raw)
    state, before = readings.state(), others.state()
    rows = range(5)
    damages = [
        {"last": [row[:-1] for row in state["last"]]},
        {"sums": state["sums"][:-1]},
        {"weight": state["weight"][:-1]},
        {"sums": [[np.inf, *row[1:]] for row in state["sums"]]},
        {"weight": [np.nan for _ in rows]},
        {"rates": state["rates"][:1]},
        {"rates": [("lion", *state["rates"][0][1:]), None]},
        {"rates": [("sgd", np.nan, 0.1, 0.0), None]},
        {"rates": None},
    ]
    for damage in damages:
        with pytest.raises((TypeError, ValueError), match="must be|must be one of"):
            others.load({**state, **damage})
        assert others.state() == before, damage
    others.load({**state, "rates": []})  # what was saved before the first reading has none
    assert others.state() == {**state, "rates": []}
    others.load(state)
    assert others.state() == state
