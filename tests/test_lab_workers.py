"""Worker processes: the same results, and a death costs one cell."""

import os

import numpy as np
import pytest
from sweep_cells import DiesHere, NoGoodHere, draw, threads

from normcore.lab.jobs import CannotLoadError, dump, run_job
from normcore.lab.workers import Workers, run_in_workers


def flat(parts):
    return sorted((result for part in parts for result in part), key=lambda result: str(result.cell))


def where(experiment):
    return os.getpid()


def test_results_are_those_of_this_process():
    cells = [{"lr": 0.1 * k, "seed": k} for k in range(5)]
    here = flat(run_job(draw, [cell], False) for cell in cells)
    for jobs in ([[cell] for cell in cells], [cells[:3], cells[3:]]):
        there = flat(run_in_workers(draw, jobs, False, 2))
        assert [r.cell for r in there] == [r.cell for r in here]
        assert all(np.array_equal(a["drawn"], b["drawn"]) for a, b in zip(here, there, strict=True))
    assert flat(run_in_workers(threads, [[{"lr": 1.0}]], False, 1))[0]["threads"] == 1


def test_a_death_costs_one_cell():
    kinds = ["fine", "kill", "fine", "raise", "exit", "nan", "fine"]
    cells = [{"lr": 0.1, "seed": k, "kind": kind} for k, kind in enumerate(kinds)]
    results = flat(run_in_workers(draw, [[cell] for cell in cells], False, 2))
    expected = {"fine": "done", "kill": "lost", "raise": "raised", "exit": "lost", "nan": "diverged"}
    assert [r.status for r in results] == [expected[kind] for kind in kinds]
    assert "its process died" in results[1].error
    fine = run_job(draw, [cells[2]], False)[0]
    assert np.array_equal(results[2]["drawn"], fine["drawn"])


def test_a_death_among_cells_of_one_job_costs_one_cell():
    job = [{"lr": 0.1, "seed": k, "kind": kind} for k, kind in enumerate(["fine", "exit", "fine"])]
    assert [r.status for r in flat(run_in_workers(draw, [job], False, 2))] == ["done", "lost", "done"]


def test_the_workers_meet():
    with Workers(dump(draw), 2) as workers:
        assert len(set(workers.all_at_once(where))) == 2
        assert os.getpid() not in workers.all_at_once(where)


def test_an_experiment_that_cannot_be_loaded_is_an_error_not_a_loss():
    with pytest.raises(CannotLoadError, match="planted: there is no such module"):
        list(run_in_workers(NoGoodHere(), [[{"lr": 1.0}]], False, 1))


def test_leaving_early_ends_the_workers():
    parts = run_in_workers(draw, [[{"lr": 0.1, "pause": 0.0}], [{"lr": 0.2, "pause": 600.0}]], False, 2)
    assert next(parts)[0].status == "done"
    parts.close()  # would wait ten minutes otherwise


def test_workers_that_do_not_start_are_an_error_not_a_loss():
    with pytest.raises(RuntimeError, match="no worker process starts; .* under `if __name__ == '__main__':`"):
        list(run_in_workers(DiesHere(), [[{"lr": 1.0}]], False, 1))
