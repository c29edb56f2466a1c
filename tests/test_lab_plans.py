"""Cells are shared out evenly, and "auto" takes the fastest way."""

import pytest
import sweep_cells
from sweep_cells import Counting, StuckHere, draw

from normcore.lab import plans
from normcore.lab.backends import run
from normcore.lab.plans import Plan, fastest, split
from normcore.lab.workers import Workers

CELLS = [{"lr": float(k)} for k in range(10)]


@pytest.mark.parametrize(
    "count,workers,sizes",
    [(10, 2, [5, 5]), (10, 1, [10]), (70, 1, [24, 24, 22]), (3, 4, [1] * 3), (0, 2, [])],
)
def test_cells_are_shared_out_evenly(count, workers, sizes):
    cells = [{"lr": float(k)} for k in range(count)]
    jobs = split(cells, Plan(True, workers))
    assert [len(job) for job in jobs] == sizes and [cell for job in jobs for cell in job] == cells
    assert [len(job) for job in split(cells, Plan(False, workers))] == [1] * count


@pytest.fixture(autouse=True)
def quick_starts(monkeypatch):
    """What takes seconds once in a session is taken for done."""
    monkeypatch.setattr(plans, "VMAP_IMPORT", 0.05)
    monkeypatch.setattr(Workers, "expected_start", 0.05)
    monkeypatch.setattr(plans, "BUSY", 1e9)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where `Counting` says so."""
    now = [0.0]
    monkeypatch.setattr(sweep_cells, "spend", lambda seconds: now.append(now[-1] + seconds))
    monkeypatch.setattr(plans.time, "perf_counter", lambda: now[-1])
    return now


def choice(alone, together, count=20, **options):
    cells = [{"lr": float(k)} for k in range(count)]
    return fastest(Counting(alone, together, **options), cells, 1)


def test_auto_takes_the_fastest_here(clock):
    plan = choice(1e-3, 9e-4)
    assert str(plan) == "vmap" and plan.seconds == pytest.approx({"loop": 2.0, "vmap": 1.8})
    assert str(choice(1e-3, 1.1e-3)) == "loop"


@pytest.mark.parametrize("fixed", [1e-4, 1e-2])
def test_auto_counts_what_a_cell_costs_before_its_first_step(clock, fixed):
    plan = choice(1e-3, 2e-4, count=4, fixed=fixed)
    assert plan.seconds == pytest.approx({"loop": 4 * (fixed + 0.1), "vmap": fixed + 0.08})


def test_timing_is_a_small_part_of_a_sweep(clock):
    plan = choice(1e-3, 4e-4, count=16)
    assert plan.seconds["vmap"] == pytest.approx(16 * 0.04) and clock[-1] < 0.07 * plan.seconds["vmap"]


def test_auto_says_where_cells_cannot_be_together(clock):
    with pytest.warns(UserWarning, match="not computed together: not together"):
        assert str(choice(1e-3, 1e-4, broken=True)) == "loop"


def test_auto_without_timing_takes_all_cores():
    assert str(fastest(draw, CELLS, 2)) == "2 processes" and str(fastest(draw, CELLS, 1)) == "loop"
    assert str(fastest(draw, CELLS[:1], 2)) == "loop" and str(fastest(draw, [], 2)) == "loop"


def test_an_error_in_the_cell_that_is_timed_costs_only_that_cell(clock):
    cells = [{"lr": -1.0}, {"lr": 2.0}]
    assert (
        str(fastest(Counting(), cells, 1)) == "loop" and str(fastest(Counting(), cells, 2)) == "2 processes"
    )
    assert [r.status for part in run(Counting(), cells, fastest(Counting(), cells, 1)) for r in part] == [
        "raised",
        "done",
    ]


def test_auto_does_not_start_workers_for_what_is_soon_done(monkeypatch):
    monkeypatch.setattr(plans, "_try_workers", None)  # would fail
    assert str(fastest(Counting(1e-5, 1e-4), CELLS, 2)) == "loop"
    with pytest.raises(TypeError, match="not callable"):
        fastest(Counting(1e-3, 1e-3), CELLS, 2)


@pytest.mark.parametrize(
    "alone,together,way", [(0.03, 0.05, "2 processes"), (0.05, 0.01, "vmap in 2 processes")]
)
def test_auto_starts_workers_where_they_pay_and_uses_them(alone, together, way):
    experiment = Counting(alone, together)
    plan = fastest(experiment, CELLS, 2)
    assert str(plan) == way and set(plan.seconds) == {"loop", "vmap", way}
    results = [result for part in run(experiment, CELLS, plan) for result in part]
    assert sorted(result["lr2"] for result in results) == [k**2 for k in range(10)]
    with pytest.raises(RuntimeError, match="shutdown"):
        plan.pool.submit(CELLS[:1], False)


def test_auto_does_not_start_workers_on_a_busy_machine(monkeypatch, clock):
    monkeypatch.setattr(
        plans, "_try_workers", lambda experiment, cells, cores, seconds: seconds.update({"2 processes": 0.0})
    )
    assert str(fastest(Counting(1.0, 2.0), CELLS, 2)) == "2 processes"
    monkeypatch.setattr(plans, "BUSY", -1.0)
    assert str(fastest(Counting(1.0, 2.0), CELLS, 2)) == "loop"


def test_auto_stays_here_where_workers_cannot_follow():
    with pytest.warns(UserWarning, match="not computed in worker processes: experiment cannot be loaded"):
        assert str(fastest(StuckHere(), CELLS, 2)) == "loop"
