"""The command line: the page or JSON, and the exit status that CI reads; once in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from normcore.__main__ import main

ROOT = Path(__file__).parent.parent

FACTORIES = """
import torch
from torch import nn

def fine():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, weight_decay=5e-3)
    batch = torch.randn(16, 4), torch.randint(2, (16,))
    return dict(model=net, optimizer=optimizer, batch=batch, loss_fn=nn.functional.cross_entropy, steps=1000)

def warned():
    return fine() | {"optimizer": torch.optim.SGD(NET.parameters(), lr=0.01), "model": nn.Sequential(NET, nn.Linear(2, 2))}

NET = nn.Linear(4, 2)

def wrong():
    return fine() | {"steps": 0}

def fails():
    raise RuntimeError("no data here")
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command in a folder with these factories: exit status, output, errors."""
    (tmp_path / "mine.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def command(*arguments):
        try:
            status = main(list(arguments))
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    yield command
    sys.modules.pop("mine", None)


def test_fine_is_0_and_prints_the_page(run):
    status, out, errors = run("diagnose", "mine:fine")
    assert (status, errors) == (0, "")
    assert "SCALE-FREE" in out and out.endswith("Warnings: none\n")


@pytest.mark.slow
def test_warnings_are_1_and_json_names_them(tmp_path):
    """As a user calls it: the folder one is in holds the module, and the process ends with the status."""
    (tmp_path / "mine.py").write_text(FACTORIES)
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    call = [sys.executable, "-m", "normcore", "diagnose", "mine:warned", "--json"]
    result = subprocess.run(call, cwd=tmp_path, env=paths, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "")
    assert json.loads(result.stdout)["warnings"] == ["scale-free"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diagnose", "mine"], "factory must be package.module:name, got 'mine'"),
        (["diagnose", "mine:nothing"], "module 'mine' has no attribute 'nothing'"),
        (["diagnose", "nowhere.at.all:fine"], "No module named 'nowhere'"),
        (["diagnose", "mine:wrong"], "steps must be >= 1, got 0"),
        (["diagnose", "mine:fails"], "no data here"),
        (["heal", "mine:fine"], "invalid choice: 'heal'"),
        ([], "arguments are required"),
    ],
)
def test_what_cannot_be_run_is_2(run, arguments, message):
    status, out, errors = run(*arguments)
    assert status == 2 and message in errors and not out
