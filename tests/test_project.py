"""The project as a whole: requirements in one place, a light import, honest pages."""

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent

LIGHT = """
import socket, sys, time
import torch, numpy
def refuse(*a, **k): raise AssertionError("a connection was opened")
socket.socket.connect = refuse
start = time.process_time()
import normcore
print(time.process_time() - start)
heavy = {"sympy", "matplotlib", "sklearn", "scipy", "torchvision", "tqdm", "nbformat"} & set(sys.modules)
assert not heavy - set(BEFORE), heavy
"""


def test_import_is_light():
    code = LIGHT.replace("import torch, numpy", "import torch, numpy\nBEFORE = list(sys.modules)")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 0.8  # of the processor, which a busy machine does not stretch


def test_environment_takes_its_requirements_from_pyproject():
    text = (ROOT / "environment.yml").read_text()
    assert '-e ".[book,test]"' in text and "conda-forge" in text
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"lab", "book", "test"} <= set(extras)
    listed = re.findall(r"^\s+- ([a-z]+)", text.split("dependencies:")[1], re.MULTILINE)
    assert listed == ["python", "pip", "pip"]  # conda brings these, and pip the rest


def test_every_requirement_has_its_reason():
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[tool.setuptools")]
    requirements = [
        line for line in block.splitlines() if line.startswith('  "') and "torch-normcore[" not in line
    ]
    assert len(requirements) > 10 and all("#" in line for line in requirements)


def test_what_pip_installs_brings_the_rows_of_the_scoreboard():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    files = [path for pattern in data["normcore"] for path in (ROOT / "normcore").glob(pattern)]
    assert {"rows.json", "normcore.mplstyle"} <= {path.name for path in files}


def test_launch_buttons_name_the_notebooks_once():
    config = (ROOT / "_config.yml").read_text()
    pages = re.findall(r"file:\s*(\S+)", (ROOT / "_toc.yml").read_text())
    prefix = re.search(r"^  path_to_book:\s*(\S+)", config, re.MULTILINE)
    for page in pages:
        assert any(
            (ROOT / (prefix[1] if prefix else "") / page).with_suffix(s).exists() for s in (".ipynb", ".md")
        )


def test_make_help_lists_every_target():
    result = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("book", "test", "html", "store", "robust", "bite", "mutate"):
        assert f"make {target}" in result.stdout


def test_an_old_python_is_told_so(tmp_path):
    fake = tmp_path / "python3"
    pretend = "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])"
    fake.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{pretend}' \"$2\"\n")
    fake.chmod(0o755)
    result = subprocess.run(
        ["make", "-B", ".venv/.ready", f"PYTHON={fake}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        result.returncode != 0
        and "normcore needs Python 3.11 or newer" in result.stderr
        and "3.9" in result.stderr
    )


def test_every_planted_fault_still_has_its_place():
    """`make bite` takes long; that its faults apply, and that their tests exist, is seen at once."""
    bite = runpy.run_path(str(ROOT / "tests" / "bite.py"), run_name="bite")
    for name, file, text, replacement, tests in bite["FAULTS"]:
        found = (ROOT / "normcore" / file).read_text(encoding="utf-8").count(text)
        assert found == 1, f"{name}: {found} places in {file}"
        assert text != replacement
        for test in tests.split():
            assert (ROOT / "tests" / test.split("::")[0]).exists(), f"{name}: no {test}"
