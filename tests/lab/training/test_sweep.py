"""Sweeps: a cell that raises, diverges or kills its process costs itself; a second call computes what is missing."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import joblib
import launch
import numpy as np
import pytest
import swept
import torch

from normcore.lab import grid, mlp, sweep


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


def forward(device):
    return {"loss": mlp((64, 16, 10))(torch.ones(2, 64, device=device)).sum()}


def test_a_result_that_no_cell_has_comes_with_the_reason():
    """A net on one device and data on another, say."""
    result = sweep(forward, grid(device=["meta"]))
    assert (
        repr(result) == "Sweep(1 raised)" and np.isfinite(sweep(forward, grid(device=["cpu"]))["loss"]).all()
    )
    with pytest.raises(KeyError, match="no cell has a result or setting 'loss'; .*meta"):
        result["loss"]


def test_a_cell_that_raises_is_a_result():
    result = sweep(experiment, grid(lr=[1, 3]))
    assert result[1].status == "raised" and result[1].error == "RuntimeError: three"
    assert np.isnan(result["loss"][1]).all() and repr(result) == "Sweep(1 done, 1 raised)"


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


def all_sorts(kind):
    """Results of every kind that is kept."""
    values = {
        "array": np.arange(3.0),
        "tensor": torch.ones(2, dtype=torch.float64, requires_grad=True),
        "number": np.float64(0.1),
        "list": [0.1, 0.2],
        "text": "word",
        "none": None,
        "whole": 3,
    }
    return {"value": values[kind]}


def test_what_is_kept_is_what_was_computed(tmp_path):
    cells = grid(kind=["array", "tensor", "number", "list", "text", "none", "whole"])
    first, second, plain = (sweep(all_sorts, cells, folder=folder) for folder in (tmp_path, tmp_path, None))
    for runs in zip(first.cells, second.cells, plain.cells, strict=True):
        values = [run.results["value"] for run in runs]
        assert runs[0].status == "done" and len({type(value) for value in values}) == 1, runs[0]
        np.testing.assert_array_equal(values[0], values[1])
        np.testing.assert_array_equal(values[0], values[2])
    assert plain[2].results["value"] == 0.1 and plain[3].results["value"].tolist() == [0.1, 0.2]
    assert sweep(lambda: {"bad": object()}, [{}])[0].status == "raised"


def counting(log, factor):
    def measure(lr):
        log.append(lr)
        return {"loss": factor * lr}

    return measure


def test_a_result_belongs_to_what_the_experiment_holds(tmp_path):
    """Closures of one source are different experiments."""
    results = [
        sweep(counting([], factor), grid(lr=[1.0]), folder=tmp_path)["loss"][0] for factor in (2, 3, 2)
    ]
    assert results == [2.0, 3.0, 2.0]


def kept_files(folder):
    return sorted(folder.rglob("*.pt"))


@pytest.mark.parametrize("bit", [0, 3000, -1])
def test_a_kept_result_that_is_damaged_is_computed_again(tmp_path, bit):
    run, cells = partial(experiment, folder=str(tmp_path)), grid(lr=[0.5, 1])
    before = sweep(run, cells, folder=tmp_path / "kept")
    (path, _) = kept_files(tmp_path / "kept")
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    after = sweep(run, cells, folder=tmp_path / "kept")
    assert len(calls(tmp_path)) == 3 and before["draw"].tolist() == after["draw"].tolist()


def test_a_full_disk_costs_the_cell_until_there_is_room(tmp_path, monkeypatch):
    run, fsync = partial(experiment, folder=str(tmp_path)), os.fsync

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = sweep(run, grid(lr=[1]), folder=tmp_path / "kept")
    assert result[0].status == "raised" and "No space left" in result[0].error
    assert list((tmp_path / "kept").rglob("*")) == list((tmp_path / "kept").iterdir())  # no part of a file
    monkeypatch.setattr(os, "fsync", fsync)
    assert sweep(run, grid(lr=[1]), folder=tmp_path / "kept")[0].status == "done"


def alive(pid):
    """Whether a process runs; one that has ended may wait for its parent for ever."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_sweep_keeps_what_was_finished_and_leaves_no_process(tmp_path, kill):
    begun = tmp_path / "begun"
    begun.mkdir()

    def wait(until, what):
        end = time.monotonic() + launch.PATIENCE
        while not until():
            assert time.monotonic() < end, what
            time.sleep(0.2)

    def workers():
        return {int(text) for path in begun.iterdir() if (text := path.read_text())}

    process = launch.begin([launch.TESTS / "swept.py", tmp_path])
    try:
        wait(
            lambda: len(kept_files(tmp_path)) == 4 and len(list(begun.iterdir())) == 6, "four cells are done"
        )
        process.send_signal(kill)
        process.wait(timeout=launch.PATIENCE)
        (tmp_path / "quick").touch()  # orphans may end their cell, and keep it
        wait(lambda: not any(map(alive, workers())), "workers outlive the sweep")
    finally:
        launch.end(process)
    kept = len(kept_files(tmp_path))
    assert kept >= 4
    result = sweep(swept.of(tmp_path), swept.CELLS, folder=tmp_path / "kept")
    assert repr(result) == "Sweep(8 done)" and result["twice"].tolist() == list(range(0, 16, 2))
    assert (
        len([path for path in begun.iterdir() if path.name[0] in "0123"]) == 4
    )  # none of these was computed twice


# The next three tests stand together: workers that one of them leaves idle serve the next, and need not import torch.


@pytest.mark.slow
def test_order_place_and_the_callers_generator_change_nothing():
    cells = grid(lr=[0.1, 0.2], seed=[5, 6])
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    here = sweep(experiment, cells)
    assert torch.equal(state, torch.get_rng_state()) and threads == torch.get_num_threads()
    there = sweep(experiment, cells[::-1], workers=2)
    assert here["draw"].tolist() == there["draw"].tolist()[::-1]
    assert here["draw"][0] == here["draw"][2] != here["draw"][1]  # by seed


@pytest.mark.slow
def test_a_killed_worker_costs_its_cell_and_is_tried_again_by_the_next_call(tmp_path):
    run = partial(experiment, folder=str(tmp_path))
    cells = grid(lr=[0.25, 0.5, 4, 0.75])
    first = sweep(run, cells, folder=tmp_path / "kept", workers=2)
    # the kill ends all that ran beside it, and each half goes on alone: only a cell that kills again and again is lost
    assert [r.status for r in first.cells] == ["done", "done", "diverged", "done"]


def deadly(lr):
    if lr == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"loss": lr}


@pytest.mark.slow
def test_a_cell_that_always_kills_is_lost_and_the_others_are_not(tmp_path):
    result = sweep(deadly, grid(lr=[1, 4, 2]), workers=2)
    assert [r.status for r in result.cells] == ["done", "lost", "done"] and "Terminated" in result[1].error


def test_what_is_no_death_of_a_worker_is_raised(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no pickle")

    monkeypatch.setattr("normcore.lab.training.sweep.Parallel", broken)
    with pytest.raises(RuntimeError, match="no pickle"):
        sweep(deadly, grid(lr=[1]))


@pytest.mark.slow
def test_a_dask_cluster_behind_joblibs_own_switch():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask", n_jobs=-1),
    ):
        result = sweep(experiment, grid(lr=[0.5, 3], seed=[0, 1]))
    assert [r.status for r in result.cells] == ["done", "done", "raised", "raised"]
    assert result["draw"][:2].tolist() == sweep(experiment, grid(lr=[0.5], seed=[0, 1]))["draw"].tolist()
