"""The house: every arrow points down, files stay short, every room has its tests, and no name without a need."""

import ast
import itertools
import json
import re
from pathlib import Path

import pytest

import normcore
from normcore import lab

PACKAGE = Path(normcore.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
IDS = [str(path.relative_to(PACKAGE)) for path in MODULES]
FLOORS = [
    {"checks", "files", "sharded"},
    {"schedules", "invariance", "curvature"},
    {"equivalence", "catapult"},
    {"norm_dynamics", "lab"},
    {"doctor", "experiments"},
]
"""From the ground up; a room may use those below it. `bookkit` stands apart."""

DOORS = {"__init__", "__main__"}
"""`import normcore` and `python -m normcore`: ways into the rooms. Of these only `bookkit` goes by one, the first."""

CORE_IMPORTS = {"torch", "numpy", "normcore"}
LONGEST = 360
GREW = {
    "ExpLR: the trial, any norm layer, ordinary gradients and weights, guards of copies and loads": 900,
    "invariance: scaling_symmetries, verdicts without eps, roles, any forward": 610,
    "curvature: hessian_eigenvalues, hessian_trace, losses that are no means, snapshots under no_grad, no forward derivative": 201,
    "checks: one vocabulary of errors for all rooms": 75,
    "doctor: diagnose, Diagnosis, and its command; reciprocal shares, batches as mappings": 690,
    "bad input: every argument of every public function is looked at, and states of strangers": 415,
    "lab.transformer, the second net of chapter 20": 85,
    "lab.measure: laws and mean_and_error: the law distance and the judge of chapter 13, tested, out of its cells": 250,
    "lab.run_side_by_side: chapter 8 trains three seeds as one net, in half the time": 128,
    "experiments, the ResNet-9-like net on photographs in bfloat16, with the arms of Figs 2, 4, 5 and 6": 59,
    "experiments, flights on thirty digits: convolutional and residual nets up to c = 32, for chapter 17": 26,
    "experiments, a residual net that fits its digits, in full batch at four rates, for chapter 12": 26,
    "bookkit.draw: the drawings of Part I and of the front page": 275,
    "bookkit.warm: kernels that are forked, nine seconds of a processor less for each chapter": 102,
    "bookkit.robust, seeds, faults: checks under eight perturbations, damage in a chapter": 439,
}
"""What came after the house was built, in lines, each with its need."""
MOST_LINES = 10_300 + sum(GREW.values())
ALSO = {
    "Constant": "a schedule with one rate, for those who write their own",
    "EigenResult": "what the curvature functions return",
    "Diagnosis": "what diagnose returns",
    "Equilibrium": "what equilibrium returns",
    "EquivalentSchedule": "what the schedule functions return",
    "InvarianceReport": "what scale_invariance returns",
    "ScalingSymmetries": "what scaling_symmetries returns",
    "hessian_eigenvalues": "how many directions a rate is too large for, not only whether one is",
    "hessian_trace": "the mean curvature, which gradient noise feels, beside the largest",
    "convert_checkpoint": "a finished run goes on in the other gauge",
    "follow": "a schedule of the book on a stock optimizer",
    "lr_phases": "the edges of a net whose curvature was measured",
    "intrinsic_lr": "the second paper's own number, read off an optimizer",
    "CellResult": "what a sweep returns for a cell",
    "Dataset": "what load_dataset returns",
    "Descent": "what descend returns",
    "History": "what train returns",
    "SDERun": "what simulate_sde returns",
    "SWA": "averages of iterates as a probe",
    "ScaleFreeReport": "what make_scale_invariant returns",
    "Sweep": "what sweep returns",
    "ToyRun": "what toy returns",
    "ValleyRun": "what valley returns",
    "cnn1d": "a net for the MNIST-1D signals",
    "grid": "cells of a sweep",
    "load_checkpoint": "a killed run goes on",
    "loss_on": "a loss as a probe",
    "make_scale_invariant": "the recipe of the second paper on a given model",
    "save_checkpoint": "a killed run goes on",
    "sweep": "one experiment at many settings",
    "relative_gap": "a ruler that needs no scale",
}
"""Public names that no chapter uses, each with the need that keeps it."""


def room(name):
    """The room of a dotted name below normcore."""
    return name.split(".")[1]


def floor(name):
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imports(path):
    """Dotted names a file imports at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def own_imports(path):
    return [name for name in imports(path) if name.split(".")[0] == "normcore"]


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_arrows_point_down(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in own_imports(path):
        assert "." in name or own == "bookkit", f"{path.name} imports the package itself"
        assert name == "normcore" or room(name) not in DOORS, f"{path.name} imports {name}"
        if own in DOORS:
            continue
        if own == "bookkit":
            assert name == "normcore" or room(name) in {"bookkit", "checks", "files", "lab"}, (
                f"{path.name} imports {name}"
            )
        elif room(name) != own:
            assert floor(room(name)) < floor(own), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_the_core_needs_torch_and_numpy_only(path):
    if path.relative_to(PACKAGE).parts[0] in {"lab", "experiments", "bookkit"}:
        return
    for name in imports(path):
        top = name.split(".")[0]
        assert top in CORE_IMPORTS or top in __import__("sys").stdlib_module_names, f"{path.name}: {name}"


def test_no_modules_need_each_other():
    graph = {
        "normcore." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts): set(own_imports(path))
        for path in MODULES
    }
    graph = {name: needs & graph.keys() for name, needs in graph.items()}
    done = set()
    while len(done) < len(graph):
        ready = {name for name, needs in graph.items() if name not in done and needs <= done}
        assert ready, f"cycle among {sorted(set(graph) - done)}"
        done |= ready


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_every_room_has_its_tests_and_stays_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    folder = ROOT / "tests" / Path(*parts[:-1])
    own = (folder / f"test_{parts[-1]}.py").exists()
    assert own or (len(parts) > 1 and any(folder.glob("test_*.py"))), f"no tests of {path.name}"


def test_the_package_stays_small():
    files = list(PACKAGE.rglob("*.py"))
    code = [path for path in files if len(path.read_text().splitlines()) > 1]
    assert len(code) <= 66  # 65, and bookkit.warm
    assert sum(len(path.read_text().splitlines()) for path in files) <= MOST_LINES
    tops = [p for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    rooms = {path.stem for path in tops} - DOORS
    assert len(rooms) <= 14 and len(FLOORS) <= 5
    assert sorted(itertools.chain(*FLOORS)) == sorted(rooms - {"bookkit"}), "a room on no floor, or on two"


def test_no_module_is_hidden_by_a_name():
    for path in MODULES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parent = __import__(".".join(("normcore", *parts[:-1])), fromlist=["x"])
        found = getattr(parent, parts[-1], None)
        assert found is None or type(found).__name__ == "module", ".".join(parts)


def test_every_public_name_has_a_need():
    """A chapter uses it, or it stands in ALSO with its reason: so the house does not grow again."""
    cells = [
        "".join(cell["source"])
        for path in (ROOT / "book").glob("*.ipynb")
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    code = "\n".join(cells)
    used = set(re.findall(r"\b(?:nc|lab)\.(\w+)", code))
    public = set(normcore.__all__) | set(lab.__all__)
    assert public - used - ALSO.keys() == set()
    assert ALSO.keys() <= public - used
    for name in normcore.__all__:
        assert getattr(normcore, name).__doc__, name


def test_oracles_import_nothing_from_normcore():
    for path in Path(__file__).parent.glob("oracles*.py"):
        assert own_imports(path) == []
