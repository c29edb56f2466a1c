"""The project as a whole: requirements in one place, a light import, honest pages."""

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent

ALONE = """
import sys, time
LOCAL = {"socket.__new__", "socket.bind"}  # a package asks the kernel for a local IPv6 address
def refuse(name, args):
    if name.startswith(("socket.", "urllib.")) and name not in LOCAL: raise AssertionError(f"{name} {args}")
sys.addaudithook(refuse)
import torch, numpy
from torch import nn
before, start = set(sys.modules), time.process_time()
import normcore as nc
print(time.process_time() - start)
heavy = {"sympy", "matplotlib", "sklearn", "scipy", "torchvision", "tqdm", "nbformat"} & set(sys.modules) - before
assert not heavy, heavy
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
x, y, loss_fn = torch.randn(32, 4), torch.randint(2, (32,)), nn.functional.cross_entropy
report = nc.scale_invariance(model, loss_fn, (x, y))
optimizer = torch.optim.SGD(nc.param_groups(model, report), lr=0.1, momentum=0.9, weight_decay=1e-2)
exp_lr, monitor, losses = nc.ExpLR(optimizer, model), nc.NormMonitor(optimizer, model), []
for _ in range(20):
    optimizer.zero_grad()
    losses.append(loss_fn(model(x), y))
    losses[-1].backward()
    optimizer.step()
assert losses[-1] < losses[0] and exp_lr.log_scale() < 0
nc.hessian_top_eigenvalue(model, loss_fn, (x, y)), nc.ntk_top_eigenvalue(model, x)
from normcore import lab
net = lab.mlp((64, 16, 10))
lab.run(net, lab.load_dataset("digits").batches(5, 16), lr=0.1)
from mnist1d import data as signals
few = signals.get_dataset_args()
few.num_samples = 50
signals.get_dataset_args = lambda: few
assert len(lab.load_dataset("mnist1d").y_train) == 40
import socket
try: socket.create_connection(("127.0.0.1", 9), timeout=1)
except AssertionError: print("refused")  # the control
"""


@pytest.mark.slow
def test_import_is_light_and_nothing_is_looked_up_in_a_network(tmp_path):
    result = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    seconds, told = result.stdout.split()
    assert float(seconds) < 0.8  # of the processor, which a busy machine does not stretch
    assert told == "refused"
    assert not list(tmp_path.iterdir())  # nor are files left behind


SAFE = {
    "torch.load": "weights_only=True",
    "np.load": "allow_pickle=False",
}
"""Calls that could run what a file says, with the word that forbids it."""
CARRIERS = {
    "pickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib.load",
    "subprocess",
    "urllib",
    "requests",
}


def unsafe(source):
    """What in the source could run code from a file, or fetch something."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [f"{module}.{a.name}" if module else a.name for a in node.names]
            yield from (n for n in names if {n, n.split(".")[0]} & CARRIERS)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {ast.unparse(word) for word in node.keywords}
            safe = SAFE[called] in given if called in SAFE else called not in {"eval", "exec", "os.system"}
            if not safe:
                yield ast.unparse(node)


def test_no_file_can_run_code():
    for path in (ROOT / "normcore").rglob("*.py"):
        assert not list(unsafe(path.read_text(encoding="utf-8"))), path.name
    for path in (ROOT / "book").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            assert cell.cell_type != "code" or not list(unsafe(cell.source)), (path.name, cell.id)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "import pickle",
        "from joblib import load",
        "from urllib.request import urlopen",
        "exec(text)",
    ],
)
def test_what_could_run_code_is_seen(source):
    assert list(unsafe(source))


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
    assert {"rows.json", "normcore.mplstyle", "py.typed", "digits.npz"} <= {path.name for path in files}


def test_the_source_distribution_is_the_whole_project():
    """Whoever unpacks it can run the tests and render the book."""
    known = {
        "normcore",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "MANIFEST.in",
        ".git",
        ".github",
        ".gitignore",
    }
    ignored = {line.strip("/\n") for line in (ROOT / ".gitignore").open()}
    here = {path.name for path in ROOT.iterdir() if not path.name.endswith(".egg-info")}
    named = set((ROOT / "MANIFEST.in").read_text().split())
    assert here - known - ignored <= named


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
    page = (ROOT / "book" / "how_it_is_tested.md").read_text()
    assert len(bite["FAULTS"]) >= int(re.search(r"plants (\d+) faults", page)[1])
    for name, file, text, replacement, tests in bite["FAULTS"]:
        found = (ROOT / "normcore" / file).read_text(encoding="utf-8").count(text)
        assert found == 1, f"{name}: {found} places in {file}"
        assert text != replacement
        for test in tests.split():
            assert (ROOT / "tests" / test.split("::")[0]).exists(), f"{name}: no {test}"
