"""Scripts on two processes, started once however many workers run the tests."""

import os
import subprocess
import sys
import time

PATIENCE = 300
"""Seconds until a launch counts as stuck."""


def torchrun(script, folder):
    """Run `script.py FOLDER` on two processes, without GPUs; a free port is found by torch."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-4000:]


def once(tmp_path_factory, name, fill):
    """The folder that fill(folder) has filled, in this worker or in another."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    try:
        folder.mkdir()
    except FileExistsError:
        end = time.monotonic() + PATIENCE
        while not (folder / "filled").exists():
            assert time.monotonic() < end and not (folder / "failed").exists(), f"{name} failed elsewhere"
            time.sleep(0.2)
        return folder
    try:
        fill(folder)
    except BaseException:
        (folder / "failed").touch()
        raise
    (folder / "filled").touch()
    return folder
