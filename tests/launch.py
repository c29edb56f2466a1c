"""Scripts in processes of their own, which run the code under test and are gone afterwards, whatever happens."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import normcore

TESTS = Path(__file__).parent
PATIENCE = 1800
"""Seconds until a launch counts as stuck; none takes a minute on an idle machine."""


def begin(command, **environment):
    """Start a command in a session of its own; whoever does so calls `end` in a `finally`."""
    paths = os.pathsep.join([str(Path(normcore.__file__).parents[1]), str(TESTS)])
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment},
        start_new_session=True,
    )


def run(command, **environment):
    """The output of a command."""
    process = begin(command, **environment)
    try:
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err[-4000:]
        return out
    finally:
        end(process)


def end(process):
    """Let a process that leads a session end its own, then kill what is left."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=60)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def script(name, *arguments):
    """The output of a script of this folder."""
    return run([TESTS / name, *arguments])


def torchrun(path, folder):
    """Run `path FOLDER` on two processes, without GPUs; a free port is found by torch."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run([*launcher, path, folder], CUDA_VISIBLE_DEVICES="")


ON_TWO = ("digits_on_two", *(("two_processes", "sharded_runs") if torch.__version__ >= (2, 6) else ()))
"""The scripts of this folder that run on two processes; the later ones need what torch has made public in 2.6."""


def of_two_processes(tmp_path_factory, name):
    """The folder of results of one of them; a single launch runs all, one after the other, in the same two processes."""

    def fill(folder):
        for one in ON_TWO:
            (folder / one).mkdir()
        torchrun(__file__, folder)

    return once(tmp_path_factory, "two_processes", fill) / name


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


if __name__ == "__main__":
    for one in ON_TWO:
        importlib.import_module(one).main(Path(sys.argv[1], one))
