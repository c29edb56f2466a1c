"""Kernels that are forked: what they show is what a fresh kernel shows, and where they could not know better they are fresh."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from book_files import bare
from jupyter_client.provisioning import KernelProvisionerFactory

from normcore.bookkit.chapters import execute_notebook
from normcore.bookkit.warm import may_fork

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only"),
]

CELLS = [
    "import os, sys\nprint('torch' in sys.modules)",
    "print(os.getcwd(), os.environ.get('NORMCORE_SEED'), os.environ['OMP_NUM_THREADS'])",
    "import torch\nfrom normcore import bookkit\nfrom normcore.bookkit import plots\nprofile = bookkit.setup()",
    "torch.manual_seed(0)\ntorch.rand(2)",
    "with plots.panels(1) as ax:\n    ax.plot([0, 1])",
]


def shown(folder):
    """What a notebook of these cells shows, executed in this folder."""
    notebook = bare(*CELLS)
    _, error = execute_notebook(notebook, folder)
    assert error is None
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def choose(monkeypatch, provisioner):
    """As JUPYTER_DEFAULT_PROVISIONER_NAME does, which is read before the first kernel of a process only."""
    monkeypatch.setattr(KernelProvisionerFactory.instance(), "default_provisioner_name", provisioner)


@pytest.fixture
def warm(monkeypatch):
    """As in `make book`, whatever other tests have left in the environment."""
    choose(monkeypatch, "normcore-warm")
    monkeypatch.setattr("normcore.bookkit.warm.STARTED", {})
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONHASHSEED", "0")


def test_a_forked_kernel_shows_what_a_fresh_one_shows(warm, monkeypatch, tmp_path):
    first = shown(tmp_path)
    monkeypatch.setenv("NORMCORE_SEED", "3")
    seeded = shown(tmp_path)
    assert first[0][0].text == seeded[0][0].text == "True\n"  # torch was there at once
    choose(monkeypatch, "local-provisioner")
    fresh = shown(tmp_path)
    assert fresh[0][0].text == "False\n"
    assert fresh[1:] == seeded[1:] and str(tmp_path) + " 3 1" in seeded[1][0].text
    assert "image/png" in fresh[-1][0].data and first[3] != seeded[3]


def test_what_is_read_while_torch_is_imported_needs_a_fresh_kernel(warm, monkeypatch, tmp_path):
    shown(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    told = shown(tmp_path)
    assert told[0][0].text == "False\n" and told[1][0].text.endswith(" None 2\n")


def test_who_may_be_a_fork(monkeypatch):
    monkeypatch.setattr("normcore.bookkit.warm.STARTED", {"OMP_NUM_THREADS": "1"})
    one = {"OMP_NUM_THREADS": "1", "NORMCORE_SEED": "3", "JPY_PARENT_PID": "7"}
    here = [sys.executable, "-m", "ipykernel_launcher", "-f", "kernel.json"]
    assert may_fork(here, one) and may_fork(here, one | {"NORMCORE_PROFILE": "full"})
    assert not may_fork(["node", "kernel.js"], one) and not may_fork(["/other/python", *here[1:]], one)
    assert not may_fork(here, one | {"OMP_NUM_THREADS": "2"}) and not may_fork(here, {})
    assert not may_fork(here, one | {"NORMCORE_PROFILE": "gpu"})  # CUDA does not survive a fork


def test_a_forked_kernel_that_dies_is_missed(warm, tmp_path):
    _, error = execute_notebook(bare("1", "import os; os._exit(1)"), tmp_path)
    assert "DeadKernelError" in error


STARTS = """
import time
from jupyter_client.manager import start_new_kernel
if __name__ == "__main__":
    print(start_new_kernel()[0].provisioner.pid, flush=True)
    time.sleep(600)
"""


def test_no_kernel_outlives_who_started_it(tmp_path):
    script = tmp_path / "starts.py"
    script.write_text(STARTS)
    told = {**os.environ, "JUPYTER_DEFAULT_PROVISIONER_NAME": "normcore-warm"}
    starter = subprocess.Popen([sys.executable, script], env=told, stdout=subprocess.PIPE, text=True)
    try:
        kernel = int(starter.stdout.readline())
        assert "forkserver" in Path(f"/proc/{kernel}/cmdline").read_text()
    finally:
        starter.kill()
        starter.wait()
    until = time.monotonic() + 60
    while Path(f"/proc/{kernel}").exists():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_forked_kernel_can_be_interrupted(warm, monkeypatch, tmp_path):
    monkeypatch.setenv("NORMCORE_CELL_TIMEOUT", "2")
    _, error = execute_notebook(bare("1", "import time; time.sleep(600)"), tmp_path)
    assert error.startswith("cell 2: CellTimeoutError")
