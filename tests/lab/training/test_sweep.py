"""Sweeps: a cell that raises, diverges or kills its process costs itself; a second call computes what is missing."""

import os
import signal
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

from normcore.lab import grid, sweep


def experiment(lr, seed=0, folder=None):
    """Raises at lr 3, dies at lr 4 unless a file says that it did, diverges above 1."""
    if folder is not None:
        with Path(folder, "calls").open("a") as calls:
            calls.write(f"{lr}\n")
        if lr == 4 and not Path(folder, "died").exists():
            Path(folder, "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if lr == 3:
        raise RuntimeError("three")
    return {"loss": np.array([lr, seed]), "draw": torch.rand(()).item(), "diverged_at": 7 if lr > 1 else None}


def test_cells_are_ordered_and_read_by_name():
    result = sweep(experiment, grid(lr=[0.5, 2], seed=[0, 1]))
    assert [r.status for r in result.cells] == ["done", "done", "diverged", "diverged"]
    assert result["loss"].tolist() == [[0.5, 0], [0.5, 1], [2, 0], [2, 1]]
    assert result.where(seed=1)["lr"].tolist() == [0.5, 2]
    assert len(result) == 4 and result[2].cell == {"lr": 2, "seed": 0}
    with pytest.raises(KeyError, match="no cell has a result or setting 'norm'"):
        result["norm"]


def test_a_cell_that_raises_is_a_result():
    result = sweep(experiment, grid(lr=[1, 3]))
    assert result[1].status == "raised" and result[1].error == "RuntimeError: three"
    assert np.isnan(result["loss"][1]).all() and repr(result) == "Sweep(1 done, 1 raised)"


def test_order_place_and_the_callers_generator_change_nothing():
    cells = grid(lr=[0.1, 0.2], seed=[5, 6])
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    here = sweep(experiment, cells)
    assert torch.equal(state, torch.get_rng_state()) and threads == torch.get_num_threads()
    there = sweep(experiment, cells[::-1], workers=2)
    assert here["draw"].tolist() == there["draw"].tolist()[::-1]
    assert here["draw"][0] == here["draw"][2] != here["draw"][1]  # by seed


def calls(folder):
    return sorted((folder / "calls").read_text().split())


def test_a_second_call_computes_what_is_missing(tmp_path):
    run = partial(experiment, folder=str(tmp_path))
    sweep(run, grid(lr=[1, 3]), folder=tmp_path / "kept")
    result = sweep(run, grid(lr=[1, 2, 3]), folder=tmp_path / "kept")
    assert calls(tmp_path) == ["1", "2", "3", "3"]  # what raised is tried again
    assert [r.status for r in result.cells] == ["done", "diverged", "raised"]
    sweep(partial(experiment, folder=str(tmp_path), seed=2), grid(lr=[1]), folder=tmp_path / "kept")
    assert calls(tmp_path).count("1") == 2  # another experiment


def test_a_killed_worker_costs_its_cell_and_is_tried_again_by_the_next_call(tmp_path):
    run = partial(experiment, folder=str(tmp_path))
    cells = grid(lr=[0.25, 0.5, 4, 0.75])
    first = sweep(run, cells, folder=tmp_path / "kept", workers=2)
    # the kill hits all that ran beside it, and each of those is computed alone: only a cell that kills again is lost
    assert [r.status for r in first.cells] == ["done", "done", "diverged", "done"]


def deadly(lr):
    if lr == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"loss": lr}


def test_a_cell_that_always_kills_is_lost_and_the_others_are_not(tmp_path):
    result = sweep(deadly, grid(lr=[1, 4, 2]), workers=2)
    assert [r.status for r in result.cells] == ["done", "lost", "done"] and "Terminated" in result[1].error


@pytest.mark.slow
def test_a_dask_cluster_behind_joblibs_own_switch():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask", n_jobs=-1),
    ):
        result = sweep(experiment, grid(lr=[0.5, 3], seed=[0, 1]))
    assert [r.status for r in result.cells] == ["done", "done", "raised", "raised"]
    assert result["draw"][:2].tolist() == sweep(experiment, grid(lr=[0.5], seed=[0, 1]))["draw"].tolist()
