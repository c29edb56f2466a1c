"""The command line in a process of its own: the page or JSON, and the exit status that CI reads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


def command(folder, *arguments):
    (folder / "mine.py").write_text(FACTORIES)
    path = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    call = [sys.executable, "-m", "normcore", *arguments]
    return subprocess.run(call, cwd=folder, env=path, capture_output=True, text=True)


def test_fine_is_0_and_prints_the_page(tmp_path):
    result = command(tmp_path, "diagnose", "mine:fine")
    assert (result.returncode, result.stderr) == (0, "")
    assert "SCALE-FREE" in result.stdout and result.stdout.endswith("Warnings: none\n")


def test_warnings_are_1_and_json_names_them(tmp_path):
    result = command(tmp_path, "diagnose", "mine:warned", "--json")
    assert result.returncode == 1 and json.loads(result.stdout)["warnings"] == ["scale-free"]


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
def test_what_cannot_be_run_is_2(tmp_path, arguments, message):
    result = command(tmp_path, *arguments)
    assert result.returncode == 2 and message in result.stderr and not result.stdout
