"""Change one operator, number, condition, call or keyword of the core at a time, run the tests of its room, and list
what none of them noticed: `make mutate`.

cosmic-ray makes the changes, in a scratch copy, so that a killed run leaves no damage. They are drawn with a seed, one
at each drawn place, but not in annotations, in the text of an error, nor at zip's strict. A mutant is tried in a fork
of this process, which has torch imported already: first with the tests that name its module and its doctests, then, if
it still lives, with all others of its room. Verdicts stand in _build/mutate: a run goes on where it stopped, and
`--again` tries the survivors anew.
"""

import argparse
import ast
import difflib
import itertools
import json
import os
import random
import re
import resource
import shutil
import sys
import tempfile
from collections import defaultdict
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch  # noqa: F401  once, for all forks
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Name

ROOT = Path(__file__).parent.parent
CORE = ["files", "schedules", "checks", "sharded", "catapult"]
CORE += ["norm_dynamics", "curvature", "invariance", "equivalence"]  # quick ones first
LIMIT = 300
"""Seconds of the processor for one run of tests."""
SOUND = set()
"""Tests seen to pass without a mutant."""


class DropCall(Operator):
    """A statement that is a call does nothing."""

    examples, become = None, "None"

    def mutation_positions(self, node):
        if node.type in ("atom_expr", "power") and node.parent.type == "simple_stmt":
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        return Name(self.become, node.start_pos, node.get_first_leaf().prefix)


class DropKeyword(DropCall):
    """A keyword argument is not given."""

    become = "**{}"

    def mutation_positions(self, node):
        if node.type == "argument" and node.children[1] == "=":
            yield node.start_pos, node.end_pos


def operators():
    """All operators by name, but for those that put a sign of another kind: a float knows no `<<`, and nobody `is` 1."""
    found = {"DropCall": DropCall(), "DropKeyword": DropKeyword()}
    for name in operator_names():
        _, before, after = f"{name}__".split("_")[:3]
        kinds = {(("Is" in x), bool(re.search("Bit|Shift|Invert", x))) for x in (before, after)}
        if not get_operator(name).arguments() and (before == "Delete" or len(kinds) == 1):
            found[name] = get_operator(name)()
    return found


def places(source, operators):
    """What can be changed where: {(position, family of operators): [(operator, occurrence)]}."""
    found, silent, plain = defaultdict(list), [], ("name", "newline", "string")
    nodes = [node for node in ast_nodes(get_ast(source)) if node.type not in plain]
    for node in ast.walk(ast.parse(source)):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        whole = isinstance(node, ast.Raise) or getattr(node, "arg", None) == "strict"
        for part in filter(None, [*parts, node if whole else None]):
            silent.append(((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)))
    for name, operator in operators.items():
        at = [(node, start) for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, (node, start) in enumerate(at):
            sign = node.parent is None or node.parent.type != "parameters"  # the bare * and / of a signature
            if sign and not any(begin <= start < end for begin, end in silent):
                found[start, name.split("_")[0]].append((name, occurrence))
    return found


def draw(files, seed):
    """Mutants in random order, as (file, line, changed source), the same ones while their own lines stay."""
    drawn, known = [], operators()
    for file in files:
        source = Path(file).read_text()
        for ((line, column), family), ways in places(source, known).items():
            chance = random.Random(f"{seed} {file} {source.splitlines()[line - 1]} {column} {family}")
            drawn.append((chance.random(), file, line, source, chance.choice(ways)))
    for _, file, line, source, (name, occurrence) in sorted(drawn):
        changed = mutate_code(source, known[name], occurrence)
        try:
            if ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)):
                yield file, line, changed
        except SyntaxError:
            pass


def sources():
    """The files of the core."""
    rooms = [
        [f"normcore/{room}.py", *sorted(map(str, Path(f"normcore/{room}").glob("*.py")))] for room in CORE
    ]
    return [file for room in rooms for file in room if Path(file).exists()]


def tests_of(file):
    """The tests of a module in two parts: those that name it and its doctests, then all others of its room."""
    path = Path(file)
    folder = Path("tests") / path.relative_to("normcore").parent
    room = sorted(folder.glob("test_*.py" if len(path.parts) > 2 else f"test_{path.name}"))
    own = [test for test in room if test.stem == f"test_{path.stem}"]
    own = own or [test for test in room if re.search(rf"\b{path.stem}\b", test.read_text())]
    return [*map(str, own), file], [str(test) for test in room if test not in own]


def run(arguments):
    """pytest in a fork, which may use the processor for LIMIT seconds; what it says."""

    def child():
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
        with open("log", "w") as log, redirect_stdout(log):
            code = pytest.main(["-q", "-p", "no:cacheprovider", "-x", *arguments])
        os._exit(code)

    process = get_context("fork").Process(target=child)
    process.start()
    process.join(20 * LIMIT)
    process.kill()
    process.join()
    return process.exitcode, Path("log").read_text()


def attempt(file, changed, tests):
    """Which test kills a mutant, one that passes without it; None if it survives. The file is whole again afterwards."""
    path = Path(file)
    before = path.read_bytes()
    path.write_text(changed)
    try:
        code, log = run(tests)
    finally:
        path.write_bytes(before)
    if code in (0, 5):  # 5: no test there
        return None
    told = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", log, re.MULTILINE)
    killer = told[1] if told else f"exit {code}"
    if told and killer not in SOUND:
        collected = [] if "::" in killer else ["--collect-only"]  # a file that cannot even be read
        if (code := run([killer, *collected])[0]) not in (0, 5):
            raise SystemExit(f"{killer} does not pass without a mutant ({code})")
        SOUND.add(killer)
    return killer


def work_in_copy(folder):
    """Copy the code and its tests, and work there: imports and relative paths mean the copy."""
    for part in ("normcore", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # not needed here, and slow to import


def main(count, seed, again, folder):
    """A line a mutant and part of the tests, then the survivors and the sum."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    book = folder / "verdicts.jsonl"
    known = (
        {tuple(key): by for key, by in map(json.loads, book.read_text().splitlines())}
        if book.exists()
        else {}
    )
    with tempfile.TemporaryDirectory() as scratch, book.open("a") as verdicts:
        work_in_copy(Path(scratch))
        drawn = [(said(*mutant), mutant) for mutant in itertools.islice(draw(sources(), seed), count)]
        killed = {change: by for (change, _), by in known.items() if by}
        for part in range(2):
            for change, (file, line, changed) in drawn:
                if change not in killed and (again or (change, part) not in known):
                    by = attempt(file, changed, tests_of(file)[part]) if tests_of(file)[part] else None
                    print(json.dumps([[change, part], by]), file=verdicts, flush=True)
                    print(f"{'killed' if by else 'survived':9}{file}:{line} {by or ''}", flush=True)
                    killed |= {change: by} if by else {}
        os.chdir(ROOT)
    print(*(change for change, _ in drawn if change not in killed), sep="\n")
    print(f"{sum(change in killed for change, _ in drawn)} of {len(drawn)} mutants killed (seed {seed})")


def said(file, line, changed):
    """A mutant in words: the place, and the lines before and after."""
    lines = difflib.ndiff(Path(file).read_text().splitlines(), changed.splitlines())
    return "\n".join([f"{file}:{line}", *(text for text in lines if text[0] in "-+")])


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--count", type=int, default=300, help="mutants to draw")
    options.add_argument("--seed", type=int, default=0, help="of the draw")
    options.add_argument("--again", action="store_true", help="try those anew that survived")
    options.add_argument(
        "--folder", type=Path, default=ROOT / "_build" / "mutate", help="of what was found out"
    )
    main(**vars(options.parse_args()))
