"""What happens to a cell becomes its result, and nothing outside it changes."""

import pickle
import random
import sys
import threading

import numpy as np
import pytest
import torch
from sweep_cells import Counting, NoGoodHere, draw, threads

from normcore.lab.jobs import CannotLoadError, dump, load, run_cell, run_dumped, run_job


def test_every_end_becomes_a_result():
    ends = {kind: run_cell(draw, {"lr": 0.1, "kind": kind}) for kind in ("fine", "nan", "raise", "leave")}
    assert {kind: result.status for kind, result in ends.items()} == {
        "fine": "done",
        "nan": "diverged",
        "raise": "raised",
        "leave": "raised",
    }
    assert "RuntimeError: planted" in ends["raise"].error and "in draw" in ends["raise"].error
    assert ends["fine"].error is None and ends["fine"].seconds >= 0
    assert run_cell(draw, {"rate": 1}).status == "raised"
    assert "must return a dict" in run_cell(lambda lr: lr, {"lr": 1}).error


def test_ctrl_c_is_not_a_result():
    def interrupted(lr):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(interrupted, {"lr": 1})


def test_global_generators_are_seeded_by_the_cell_and_put_back():
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = [float(torch.rand(())), random.random(), float(np.random.rand())]
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    first, again, other = (run_cell(draw, {"lr": 0.1, "seed": seed})["drawn"] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not (first == other).any()
    assert [float(torch.rand(())), random.random(), float(np.random.rand())] == expected


def test_cells_are_computed_with_one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert run_job(threads, [{"lr": 1.0}], False)[0]["threads"] == 1
        assert threads(1.0)["threads"] == 2 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_together_or_one_by_one():
    job = [{"lr": 1.0}, {"lr": 2.0}]
    assert [r["way"] for r in run_job(Counting(), job, True)] == [1.0, 1.0]
    assert [r["way"] for r in run_job(Counting(), job, False)] == [0.0, 0.0]
    assert [r["way"] for r in run_job(Counting(), job[:1], True)] == [0.0]


def test_an_error_together_costs_one_cell():
    with pytest.warns(UserWarning, match="3 cells are computed one by one"):
        results = run_job(Counting(), [{"lr": 1.0}, {"lr": -1.0}, {"lr": 2.0}], True)
    assert [r.status for r in results] == ["done", "raised", "done"] and results[2]["lr2"] == 4.0
    assert "lr must be >= 0, got -1.0" in results[1].error


def test_threads_of_a_process_take_turns():
    cells = [{"lr": 0.1, "seed": seed, "pause": 0.001} for seed in range(20)]
    alone = [run_cell(draw, cell)["drawn"] for cell in cells]
    together = [None] * 20

    def work(start):
        for k in range(start, 20, 4):
            together[k] = run_job(draw, [cells[k]], False)[0]["drawn"]

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert np.array_equal(alone, together)


def test_pickles_say_what_is_wrong(monkeypatch):
    assert run_dumped(dump(Counting()), [{"lr": 3.0}], False)[0]["lr2"] == 9.0
    with pytest.raises(
        CannotLoadError, match="cannot be loaded in a worker .planted: there is no such module.; define"
    ):
        load(dump(NoGoodHere()))
    with pytest.raises(TypeError, match="experiment must be picklable to leave this process"):
        dump(threading.Lock())


def test_without_cloudpickle_a_lambda_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert pickle.loads(dump(draw)) is draw
    with pytest.raises(TypeError, match="picklable"):
        dump(lambda lr: {})
    assert "sweep_cells" in sys.modules
