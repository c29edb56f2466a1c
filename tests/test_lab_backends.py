"""Plans: what is asked for is what is done, and "auto" takes the fastest."""

import concurrent.futures
import time

import pytest
from sweep_cells import Counting, NoGoodHere, draw

from normcore.lab.backends import make_plan, run, run_in_executor
from normcore.lab.plans import Plan, cpu_count, split

CELLS = [{"lr": float(k)} for k in range(10)]


def test_plans_are_what_was_asked_for():
    def plan(backend, workers, experiment=None):
        made = make_plan(experiment or Counting(), CELLS, backend, workers)
        return made.together, made.workers

    assert plan("loop", None) == plan("loop", 3) == (False, 1)
    assert plan("vmap", None) == (True, 1) and plan("vmap", 2) == (True, 2)
    assert plan("processes", 3) == (False, 3) and plan("processes", None) == (False, cpu_count())
    with pytest.raises(ValueError, match="backend must be one of .*, got 'threads'"):
        plan("threads", None)
    with pytest.raises(ValueError, match="workers must be >= 1, got 0"):
        plan("auto", 0)
    with pytest.raises(ValueError, match="'vmap' needs an experiment with a method together"):
        plan("vmap", None, draw)


def test_here_and_there_give_the_same():
    for plan in (Plan(False, 1), Plan(True, 1), Plan(False, 2), Plan(True, 2)):
        results = [result for part in run(Counting(), CELLS, plan) for result in part]
        assert sorted(result["lr2"] for result in results) == [k**2 for k in range(10)]
        assert all(result["way"] == plan.together for result in results)


# ---------------------------------------------------------------- executors


class Handle:
    """A submitit-like job: done() and result(), and it is not a Future."""

    def __init__(self, call, delay):
        self.call, self.ready = call, time.monotonic() + delay

    def done(self):
        return time.monotonic() >= self.ready

    def result(self):
        assert self.done()
        return self.call()


class Cluster:
    """A submitit-like executor: it has submit, and nothing else."""

    def __init__(self, fail=()):
        self.submitted, self.fail = [], fail

    def submit(self, function, *args):
        self.submitted.append(args)
        number = len(self.submitted)
        if number in self.fail:
            return Handle(lambda: 1 / 0, 0.0)
        return Handle(lambda: function(*args), 0.05 / number)  # the later ones end first


def test_any_submit_will_do():
    cluster = Cluster(fail=(2,))
    parts = list(run_in_executor(Counting(), split(CELLS[:4], Plan(False, 1)), False, cluster))
    assert len(cluster.submitted) == 4
    results = {part[0].cell["lr"]: part[0] for part in parts}
    assert [results[k].status for k in range(4)] == ["done", "lost", "done", "done"] and results[3.0][
        "lr2"
    ] == 9.0
    assert "ZeroDivisionError" in results[1.0].error


def test_together_on_an_executor():
    parts = list(run_in_executor(Counting(), split(CELLS, Plan(True, 2)), True, Cluster()))
    assert [len(part) for part in parts] == [5, 5] and all(r["way"] == 1 for part in parts for r in part)


def test_threads_are_executors_too():
    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        parts = list(run_in_executor(draw, [[cell] for cell in CELLS], False, executor))
    alone = {result.cell["lr"]: result for part in run(draw, CELLS, Plan(False, 1)) for result in part}
    assert len(parts) == 10
    assert all((alone[part[0].cell["lr"]]["drawn"] == part[0]["drawn"]).all() for part in parts)


def test_a_broken_executor_is_an_error_that_says_what_to_do():
    cells = [{"lr": 0.1, "kind": "exit"}, {"lr": 0.2}]
    with (
        concurrent.futures.ProcessPoolExecutor(1) as executor,
        pytest.raises(RuntimeError, match="executor broke .* new executor"),
    ):
        list(run_in_executor(draw, [[cell] for cell in cells], False, executor))


def test_an_executor_that_cannot_load_the_experiment_is_an_error():
    with pytest.raises(TypeError, match="define it in a module"):
        list(run_in_executor(NoGoodHere(), [CELLS[:1]], False, Cluster()))
