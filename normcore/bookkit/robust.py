"""Do the claims hold on another machine? Every chapter under perturbations that change no statement.

python -m normcore.bookkit.robust [02 16 ...]    executes what is missing, two at a time, and writes
                                                 book/robustness.json; killed and called again, it goes on
python -m normcore.bookkit.robust collect        writes the file from what has been executed so far
"""

import ast
import concurrent.futures
import functools
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from nbformat.v4 import new_code_cell

from normcore.bookkit.chapters import (
    Notebook,
    chapter_paths,
    execute_notebook,
    named,
    notebook_records,
    verdict_text,
)
from normcore.bookkit.claims import NOT_HELD, RELATIONS, ROUNDINGS, UNRESOLVED, Record, parse_records
from normcore.bookkit.profile import machine
from normcore.files import atomic_write

PERTURBATIONS: dict[str, dict[str, str]] = {
    "seed 1": {"NORMCORE_SEED": "1"},
    "seed 2": {"NORMCORE_SEED": "2"},
    "seed 3": {"NORMCORE_SEED": "3"},
    "two threads": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    "kernels without vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "kernels of 2013": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    "kernels of 2008": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
    "last bit": {"NORMCORE_KICK": "1"},
}
"""Name -> environment. torch, oneDNN, MKL and OpenBLAS each choose their own kernels, and so their own rounding.
Threads that wait passively leave a busy machine to others."""

LEAST = 3.0
"""A bound stays at least so many spreads away."""

DECADES = 10.0
"""Positive values that span more than this factor are measured on a log scale."""

KICK = """from normcore import lab
from normcore.bookkit.robust import kicked
for name in ("mlp", "cnn", "cnn1d", "resnet", "preresnet", "Stack"):
    setattr(lab, name, kicked(getattr(lab, name)))
"""
"""A cell that moves each initial weight of a net by one unit in the last place."""


def kicked(make: Any) -> Any:
    """Wrap a function that makes a net, so that each of its weights moves by one unit in the last place."""
    from normcore.lab import rounding_twin

    @functools.wraps(make)
    def made(*args: Any, **options: Any) -> Any:
        return rounding_twin(make(*args, **options))

    return made


class _BareClaims(ast.NodeTransformer):
    """Leave of each claim its id and the value it measures."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        if isinstance(node.func, ast.Name) and node.func.id == "claim":
            return ast.Call(node.func, node.args[:2], [])
        self.generic_visit(node)
        return node


def fingerprint(notebook: Notebook) -> str:
    """A hash of what a chapter computes, by which a finished execution is recognised.

    Bounds, sources and restrictions of claims are not in it: they are judged anew against the values that are there.
    """
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    code = [text if "%" in text[:1] else ast.dump(_BareClaims().visit(ast.parse(text))) for text in cells]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def cached(path: Path, name: str, cache: Path) -> dict[str, Any] | None:
    """What an earlier execution of this chapter, with the same code, left in the cache."""
    file = _cache_file(path, name, cache)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found if found.get("code") == fingerprint(nbformat.read(path, as_version=4)) else None


def _cache_file(path: Path, name: str, cache: Path) -> Path:
    return cache / name.replace(" ", "-") / f"{path.stem}.json"


def perturbed(path: Path, name: str, cache: Path) -> tuple[Path, str, dict[str, Any]]:
    """Execute a chapter under a perturbation, or read what an earlier call left in the cache.

    Gives (path, name, {"code": fingerprint, "error": text or None, "text": the verdict table}).
    """
    before = cached(path, name, cache)
    if before is not None:
        return path, name, before
    notebook = nbformat.read(path, as_version=4)
    code, file = fingerprint(notebook), _cache_file(path, name, cache)
    if "NORMCORE_KICK" in PERTURBATIONS[name]:
        first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
        notebook.cells.insert(first + 1, new_code_cell(KICK))
    environment = dict(os.environ)
    try:
        os.environ.update({"OMP_NUM_THREADS": "1", **PERTURBATIONS[name]})
        seconds, error = execute_notebook(notebook, path.parent)
    finally:
        os.environ.clear()
        os.environ.update(environment)
    text = verdict_text(notebook) if error is None else ""
    found = {"code": code, "error": error, "text": text, "seconds": round(seconds, 1)}
    atomic_write(file, json.dumps(found, ensure_ascii=False))
    return path, name, found


def interval(relation: str, bound: str) -> tuple[float, float]:
    """Where a claim's value must lie, from its bound as a record has it: "2.5", or "[0.9, 1.1]"."""
    ends = [float(end) for end in bound.strip("[]").split(",")]
    if relation == "in":
        return ends[0], ends[1]
    return (-math.inf, ends[0]) if relation.startswith("<") else (ends[0], math.inf)


def spread_and_margin(values: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """The spread of a claim's values, and how many spreads lie between their mean and the nearer end, low or high.

    Convention: the spread is the standard deviation, of the logarithms where the values are positive and span more
    than a factor of 10. The margin is negative where the mean is on the wrong side, and infinite where nothing moves.
    """
    v = np.asarray(values, dtype=np.float64)
    if not np.isfinite(v).all():
        return math.nan, math.nan
    if v.min() > 0 and v.max() > DECADES * v.min():
        v = np.log(v)
        low, high = (math.log(end) if end > 0 else -math.inf for end in (low, high))
    room, spread = float(min(v.mean() - low, high - v.mean())), float(v.std(ddof=1))
    return spread, room / spread if spread > 0 else math.copysign(math.inf, room)


def as_expected(stored: Record, value: float) -> bool:
    """Whether a value from another machine gives the stored verdict; NaN never does."""
    if math.isnan(value) or stored.verdict == UNRESOLVED:
        return not math.isnan(value)
    bound = stored.bound.removesuffix(ROUNDINGS)
    limit = interval("in", bound) if stored.relation == "in" else float(bound)
    return RELATIONS[stored.relation](value, limit) == (stored.verdict != NOT_HELD)


def entry(stored: Record, perturbed_records: Mapping[str, Record | None]) -> dict[str, Any]:
    """What book/robustness.json keeps of a check; a margin of null means that nothing moved.

    Threads, kernels and a last bit leave many values where they were, which would make their spread small: the margin is
    that of all values, or that of the draws alone, whichever is less, and so is the spread.
    """
    others = {name: None if r is None else r.value for name, r in perturbed_records.items()}
    odd = [name for name, r in perturbed_records.items() if r is None or not as_expected(stored, r.value)]
    kept = ("kind", "relation", "bound", "verdict", "exact")
    result = {name: getattr(stored, name) for name in kept} | {
        "stored": _finite(stored.value),
        "values": {name: _finite(value) for name, value in others.items()},
        "otherwise": odd,
    }
    if not stored.exact:
        draws = [v for name, v in others.items() if "NORMCORE_SEED" in PERTURBATIONS.get(name, ())]
        both = (_judged([stored.value, *some], stored) for some in (others.values(), draws))
        spread, margin = min(both, key=lambda found: found[1])
        result |= {"spread": _finite(float(f"{spread:.3g}")), "margin": _finite(float(f"{margin:.3g}"))}
    return result


def _judged(found: Iterable[float | None], stored: Record) -> tuple[float, float]:
    """Spread and margin; a relation that is said to fail keeps its distance from the other side.

    A value that is no number, or infinite, leaves no room; one value alone, all.
    """
    values = [value for value in found if value is not None]
    if len(values) < 2:
        return math.nan, math.inf
    spread, margin = spread_and_margin(values, *interval(stored.relation, stored.bound))
    if math.isnan(margin):
        return math.nan, 0.0
    return spread, -margin if stored.verdict == NOT_HELD else margin


def _finite(value: float | None) -> float | None:
    """The number, or None where JSON has none."""
    return value if value is not None and math.isfinite(value) else None


def weak(checks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Name the checks that came out otherwise somewhere, or whose bound is nearer than LEAST spreads."""
    found = []
    for id, check in checks.items():
        why = f"otherwise under {', '.join(check['otherwise'])}" if check["otherwise"] else ""
        if not why and _margin(check) < LEAST:
            why = f"margin {check['margin']} spreads of {check['spread']}"
        if why:
            bound = f"{check['relation']} {check['bound']}, stored {check['stored']}"
            found.append(f"{id}: {bound}, {why}: {check['values']}")
    return found


def _margin(check: Mapping[str, Any]) -> float:
    """Spreads to the bound; exact statements must hold, controls fail, and the unresolved promise nothing."""
    free = check["exact"] or check["kind"] == "control" or check["verdict"] == UNRESOLVED
    return math.inf if free or check["margin"] is None else float(check["margin"])


def summary(board: Mapping[str, Any]) -> str:
    """Counts by kind, the least and median margin of the papers' claims and ours, and what was not executed."""
    checks = {id: check for part in board["chapters"].values() for id, check in part.items()}
    kinds = [check["kind"] for check in checks.values()]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("paper", "extension", "control"))
    exact = sum(check["exact"] for check in checks.values())
    margins = [m for check in checks.values() if math.isfinite(m := _margin(check))]
    moved = sum(bool(check["otherwise"]) for check in checks.values())
    middle = f"least margin {min(margins):.2g}, median {np.median(margins):.2g} spreads; " if margins else ""
    told = f"{len(checks)} checks ({counts}), {exact} exact; {middle}{moved} came out otherwise somewhere"
    waiting = sum(map(len, board["missing"].values()))
    total = len(board["chapters"]) * len(board["perturbations"])
    return told + (f"; {waiting} of {total} executions are still to be made" if waiting else "")


def run(root: Path, names: Sequence[str] = ()) -> bool:
    """Execute what is missing, then `collect`; True when nothing is weak."""
    paths, cache = named(root, names), root / "_build" / "robust"
    with concurrent.futures.ProcessPoolExecutor(max_workers=2) as pool:
        jobs = [pool.submit(perturbed, path, name, cache) for name in PERTURBATIONS for path in paths]
        for job in concurrent.futures.as_completed(jobs):
            path, name, result = job.result()
            print(f"{path.stem:28} {name:24} {result['error'] or 'ok'}", flush=True)
    return collect(root)


def collect(root: Path) -> bool:
    """Write book/robustness.json from what has been executed, and print what is weak; True when nothing is."""
    cache, board = root / "_build" / "robust", {"machine": machine(), "perturbations": PERTURBATIONS}
    chapters: dict[str, Any] = {}
    missing: dict[str, list[str]] = {}
    for path in chapter_paths(root):
        found = {name: cached(path, name, cache) for name in PERTURBATIONS}
        tables = {name: result["text"] for name, result in found.items() if result is not None}
        chapters[path.stem] = _chapter(notebook_records(path), tables)
        absent = [name for name in PERTURBATIONS if name not in tables]
        missing |= {path.stem: absent} if absent else {}
    board |= {"missing": missing, "chapters": chapters}
    atomic_write(root / "book" / "robustness.json", json.dumps(board, indent=1, ensure_ascii=False) + "\n")
    complaints = [fault for checks in chapters.values() for fault in weak(checks)]
    print(*complaints, summary(board), sep="\n")
    return not complaints


def _chapter(stored: Iterable[Record], tables: Mapping[str, str]) -> dict[str, Any]:
    """The checks of a chapter, from its stored records and the verdict table of each perturbation."""
    other = {name: {r.id: r for r in parse_records(text)} for name, text in tables.items()}
    return {r.id: entry(r, {name: records.get(r.id) for name, records in other.items()}) for r in stored}


if __name__ == "__main__":
    if sys.argv[1:] == ["collect"]:
        sys.exit(0 if collect(Path.cwd()) else 1)
    sys.exit(0 if run(Path.cwd(), sys.argv[1:]) else 1)
