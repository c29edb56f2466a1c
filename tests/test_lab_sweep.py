"""Sweeps: the same results in any way, one at a time on disk, stopped and resumed at will."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sweep_cells import Counting, draw, trace
from test_lab_backends import Cluster

from normcore.lab.results import CellResult
from normcore.lab.sweep import Sweep, grid, sweep

MIXED = [
    *grid(lr=[0.1, 0.2], seed=[0, 1]),
    *grid(lr=[0.1], kind=["nan", "raise", "kill", "exit", "leave"]),
    *grid(lr=[0.3], seed=[2, 3]),
]
FATES = ["done"] * 4 + ["diverged", "raised", "lost", "lost", "raised"] + ["done"] * 2


def same(a, b):
    assert [(r.cell, r.status) for r in a] == [(r.cell, r.status) for r in b]
    for one, two in zip(a, b, strict=True):
        assert one.results.keys() == two.results.keys()
        for name in one.results:
            np.testing.assert_array_equal(one[name], two[name])


def test_a_grid_is_every_combination():
    cells = grid(a=range(2), b=["x", "y"], c=(0.5,))
    expected = [{"a": a, "b": b, "c": 0.5} for a in (0, 1) for b in ("x", "y")]
    assert cells == expected and grid() == [{}] and grid(a=[]) == []


def test_every_way_gives_the_same_bits():
    cells = grid(lr=[0.1, 0.2, 0.3], seed=[0, 1])
    loop = sweep(draw, cells, backend="loop")
    same(loop, sweep(draw, cells, backend="processes", workers=2))
    same(loop, sweep(draw, cells, executor=Cluster()))
    same(loop, Sweep(sweep(draw, cells[::-1], backend="loop").cells[::-1]))
    assert len(np.unique(loop["drawn"])) == 18  # control: the cells differ


def test_what_happens_to_a_cell_costs_only_itself(tmp_path):
    result = sweep(draw, MIXED, folder=tmp_path, backend="processes", workers=2)
    assert [r.status for r in result] == FATES
    assert repr(result) == "Sweep(6 done, 1 diverged, 2 raised, 2 lost; 2 processes)"
    again = sweep(draw, MIXED, folder=tmp_path)
    assert again.backend == "disk"
    same(result, again)


def test_a_rerun_computes_what_is_missing(tmp_path):
    def computed():
        file = tmp_path / "trace"
        lines = sorted(file.read_text().split()) if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    cells = grid(lr=[1, 2, 3], file=[str(tmp_path / "trace")])
    store = tmp_path / "store"
    first = sweep(trace, cells[:2], folder=store, backend="loop")
    assert computed() == ["1", "2"]
    more = sweep(trace, [*cells, cells[0]], folder=store, backend="loop")  # one new, and one named twice
    assert computed() == ["3"] and more["lr2"].tolist() == [1, 4, 9, 1]
    same(first, more[:2])
    files = sorted(store.iterdir())
    assert len(files) == 3
    files[1].write_bytes(files[1].read_bytes()[:-40])
    with pytest.warns(UserWarning, match="truncated or foreign"):
        same(more, sweep(trace, [*cells, cells[0]], folder=store, backend="loop"))
    assert len(computed()) == 1
    sweep(trace, cells, backend="loop")  # control: without a folder all are computed
    assert computed() == ["1", "2", "3"]


def test_another_experiment_in_the_same_folder_is_computed(tmp_path):
    cells = grid(lr=[1.0, 2.0])
    assert sweep(Counting(), cells, folder=tmp_path, backend="loop")["way"].tolist() == [0, 0]
    assert sweep(Counting(), cells, folder=tmp_path, backend="vmap").backend == "disk"
    assert sweep(Counting(fixed=1e-3), cells, folder=tmp_path, backend="vmap")["way"].tolist() == [1, 1]


def test_failures_are_retried_only_when_asked(tmp_path, monkeypatch):
    failing = {"now": True}

    def experiment(lr):
        if failing["now"] and lr > 1:
            raise OSError("disk full")
        return {"lr2": lr**2, "diverged_at": 0 if lr > 2 else None}

    monkeypatch.setattr(sys.modules["normcore.lab.sweep"], "fingerprint", lambda value: "the same")
    cells = grid(lr=[1.0, 2.0, 3.0])
    settings = {"folder": tmp_path, "backend": "loop"}
    assert [r.status for r in sweep(experiment, cells, **settings)] == ["done", "raised", "raised"]
    failing["now"] = False
    assert [r.status for r in sweep(experiment, cells, **settings)] == ["done", "raised", "raised"]
    assert [r.status for r in sweep(experiment, cells, retry_failed=True, **settings)] == [
        "done",
        "done",
        "diverged",
    ]
    failing["now"] = True  # a divergence is a result, and is kept
    assert [r.status for r in sweep(experiment, cells, retry_failed=True, **settings)] == [
        "done",
        "done",
        "diverged",
    ]


def test_an_interruption_keeps_what_is_there(tmp_path):
    cells = grid(lr=[0.1, 0.2, 0.3, 0.4])

    def experiment(lr):
        if lr == 0.3:
            raise KeyboardInterrupt
        return {"lr2": lr**2}

    with pytest.raises(KeyboardInterrupt):
        sweep(experiment, cells, folder=tmp_path, backend="loop")
    assert len(list(tmp_path.iterdir())) == 2
    assert sweep(experiment, cells[:2], folder=tmp_path).backend == "disk"


def test_ctrl_c_ends_the_workers_and_keeps_what_is_there(tmp_path):
    cells, folder = grid(lr=[0.1], seed=range(60), pause=[0.25]), tmp_path / "store"
    call = f"sweep(draw, {cells!r}, folder={str(folder)!r}, backend='processes', workers=2)"
    imports = "from sweep_cells import draw\nfrom normcore.lab.sweep import sweep\n"
    script = tmp_path / "script.py"
    script.write_text(f"{imports}if __name__ == '__main__': {call}")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.Popen(
        [sys.executable, script], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 100
    while len(list(folder.glob("*.npz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does it: to the parent and its workers
    error = run.communicate(timeout=60)[1]
    kept = len(list(folder.glob("*.npz")))
    assert run.returncode != 0 and "KeyboardInterrupt" in error and 2 <= kept < 40
    rest = sweep(draw, cells[: kept + 3], folder=folder, backend="loop")
    assert [r.status for r in rest] == ["done"] * (kept + 3) and len(list(folder.iterdir())) == kept + 3


def test_columns_stack_what_is_there():
    cells = [
        CellResult({"lr": k, "name": "x"}, "done", {"v": np.full(2, k), "n": np.array(k)}) for k in range(3)
    ]
    cells.append(CellResult({"lr": 3, "name": "x"}, "lost"))
    result = Sweep(cells)
    np.testing.assert_array_equal(result["v"], [[0, 0], [1, 1], [2, 2], [np.nan] * 2])
    assert result["lr"].tolist() == [0, 1, 2, 3] and result["name"].tolist() == ["x"] * 4
    assert result[:3]["n"].dtype.kind == "i" and len(result[1:3]) == 2 and result[-1].status == "lost"
    assert [r.cell["lr"] for r in result.where(lr=2)] == [2] and len(result.where(lr=9)) == 0
    assert repr(Sweep([])) == "Sweep(no cells; disk)"
    with pytest.raises(
        KeyError, match=r"no cell has a result named 'w'; there are \['lr', 'n', 'name', 'v'\]"
    ):
        result["w"]
    with pytest.raises(KeyError, match="no cell has a setting 'rate'"):
        result.where(rate=1)
    mixed = Sweep([*cells, CellResult({}, "done", {"v": np.zeros(3)})])
    with pytest.raises(ValueError, match=r"'v' must have one shape to be stacked, got \[\(2,\), \(3,\)\]"):
        mixed["v"]


def test_unfit_arguments_are_refused():
    with pytest.raises(TypeError, match="cell values must be numbers, strings or lists"):
        sweep(draw, [{"lr": object()}])
    with pytest.raises(ValueError, match="backend must be one of"):
        sweep(draw, [{"lr": 1.0}], backend="dask")
    with pytest.raises(ValueError, match="needs an experiment with a method together"):
        sweep(draw, grid(lr=[1.0, 2.0]), executor=Cluster(), backend="vmap")
    assert len(sweep(draw, [])) == 0


def test_executors_may_compute_together():
    result = sweep(
        Counting(), grid(lr=[float(k) for k in range(6)]), executor=Cluster(), backend="vmap", workers=2
    )
    assert result["way"].tolist() == [1] * 6 and result["lr2"].tolist() == [0, 1, 4, 9, 16, 25]
    assert result.backend == "Cluster"


def test_dask_gives_the_same_bits():
    distributed = pytest.importorskip("distributed")
    cells = grid(lr=[0.1, 0.2], seed=[0, 1, 2]) + [{"lr": 0.1, "kind": "raise"}, {"lr": 0.1, "kind": "nan"}]
    loop = sweep(draw, cells, backend="loop")
    options = {"processes": True, "threads_per_worker": 1, "dashboard_address": None}
    with (
        distributed.LocalCluster(n_workers=2, **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        there = sweep(draw, cells, executor=client.get_executor())
    assert [r.status for r in there] == [r.status for r in loop]
    drawn = [0, 2]  # torch and numpy; Python's own generator is used by threads of Dask too
    np.testing.assert_array_equal(there["drawn"][:6, drawn], loop["drawn"][:6, drawn])
