"""Arrows point one way, every module has its tests, and files stay short."""

import ast
from pathlib import Path

import pytest

import normcore

PACKAGE = Path(normcore.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
LEVELS = {"core": 0, "lab": 1, "bookkit": 2}
CORE_IMPORTS = {"torch", "numpy", "normcore"}
LONGEST = 360


def level(parts):
    """core, lab or bookkit."""
    return parts[1] if len(parts) > 1 and parts[1] in LEVELS else "core"


def imports(path):
    """Dotted names a file imports at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = level(("normcore", *path.relative_to(PACKAGE).parts))
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "normcore":
            assert LEVELS[level(parts)] <= LEVELS[own], f"{path.name} imports {name}"
            assert len(parts) > 1, f"{path.name} imports the package itself"
        if own == "core" and parts[0] not in CORE_IMPORTS:
            assert parts[0] in __import__("sys").stdlib_module_names, f"{path.name} imports {name}"


def test_the_core_has_no_cycle():
    graph = {
        path.stem: {n.split(".")[1] for n in imports(path) if n.startswith("normcore.")}
        for path in MODULES
        if path.parent == PACKAGE
    }
    done = set()
    while len(done) < len(graph):
        ready = {name for name, needs in graph.items() if name not in done and needs <= done}
        assert ready, f"cycle among {sorted(set(graph) - done)}"
        done |= ready


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_its_tests_and_stays_short(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    candidates = {f"test_{'_'.join(parts)}.py"} | (
        {"test_lab_nets.py"} if parts[-1] in ("layers", "resnets") else set()
    )
    tests = Path(__file__).parent
    assert any((tests / name).exists() for name in candidates), f"no {sorted(candidates)}"
    assert len(path.read_text().splitlines()) <= LONGEST


def test_the_public_surface_is_small_and_documented():
    assert len(normcore.__all__) <= 32
    for name in normcore.__all__:
        assert getattr(normcore, name).__doc__, name


def test_oracles_import_nothing_from_normcore():
    for path in Path(__file__).parent.glob("oracles*.py"):
        assert not any(name.split(".")[0] == "normcore" for name in imports(path))
