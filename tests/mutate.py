"""Change one operator, number, condition, call or keyword of the core at a time, run the tests that execute the
changed statement, and list what none of them noticed: `make mutate`.

cosmic-ray makes the changes, in a scratch copy, so that a killed run leaves no damage. They are drawn with a seed, one
at each drawn place, but not in annotations, in the text of an error, nor at zip's strict. A mutant is tried in a fork of this process,
which has torch imported already, with the tests of its room and its own doctests, fastest first. All that was found
out stands in _build/mutate: a run goes on where it stopped, and `--again` tries the survivors anew.
"""

import argparse
import ast
import difflib
import hashlib
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

import coverage
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
QUIET = ["-q", "-p", "no:cacheprovider"]


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


def tests_of(file):
    """The files with the tests of a module: its own first, its room's, the doctests."""
    path = Path(file)
    own = Path("tests") / path.relative_to("normcore").parent / f"test_{path.name}"
    room = (
        [own]
        if len(path.parts) == 2
        else sorted(own.parent.glob("test_*.py"), key=lambda other: other != own)
    )
    tests = [*map(str, room), file]
    return [name for name in tests if Path(name).exists()]


def run(arguments, note, limit):
    """pytest in a fork that may use the processor for `limit` seconds; `note` makes a plugin of what it learns."""

    def child():
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        with open("log", "w") as log, redirect_stdout(log):
            code = pytest.main([*QUIET, *arguments], plugins=[note] if note else [])
            if note:
                note.write()
        os._exit(code)

    process = get_context("fork").Process(target=child)
    process.start()
    process.join(30 * limit)
    process.kill()
    process.join()
    return process.exitcode, Path("log").read_text()


class Watch:
    """Which test executes which line of the core, and in how many seconds."""

    def __init__(self, goal):
        self.goal, self.seconds, self.coverage = goal, defaultdict(float), None

    def pytest_sessionstart(self):
        self.coverage = coverage.Coverage(data_file=None, include=[f"{Path.cwd()}/normcore/*"])
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid):
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration

    def write(self):
        self.coverage.stop()
        data = self.coverage.get_data()
        lines = {
            str(Path(f).relative_to(Path.cwd())): data.contexts_by_lineno(f) for f in data.measured_files()
        }
        self.goal.write_text(json.dumps({"seconds": self.seconds, "lines": lines}))


def watched(tests, folder):
    """What `Watch` saw of a file of tests, from the folder if it was seen before; without a mutant all must pass."""
    content = b"".join(Path(name).read_bytes() for name in [tests, *sources()])
    goal = folder / f"{tests.replace('/', '.')}.{hashlib.sha256(content).hexdigest()[:12]}.json"
    if not goal.exists():
        code, log = run([tests], Watch(goal), 3600)
        if code not in (0, 5):
            raise SystemExit(f"{tests} does not pass without a mutant ({code}):\n{log[-2000:]}")
    return json.loads(goal.read_text())


def sources():
    """The files of the core."""
    rooms = [
        [f"normcore/{room}.py", *sorted(map(str, Path(f"normcore/{room}").glob("*.py")))] for room in CORE
    ]
    return [file for room in rooms for file in room if Path(file).exists()]


def reaching(file, line, folder):
    """The tests that execute the statement at a line, fastest first; all of the room's where none is seen to."""
    tree = ast.parse(Path(file).read_text())
    around = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and n.lineno <= line <= n.end_lineno]
    inner = min(around, key=lambda n: n.end_lineno - n.lineno)
    ids, seconds = set(), {}
    for tests in tests_of(file):
        seen = watched(tests, folder)
        seconds |= seen["seconds"]
        lines = seen["lines"].get(file, {})
        ids |= {
            test
            for at in range(inner.lineno, inner.end_lineno + 1)
            for test in lines.get(str(at), [])
            if test
        }
    ids &= seconds.keys()
    return sorted(ids or seconds, key=seconds.get), 30 + 3 * int(sum(seconds[t] for t in ids or seconds))


def attempt(file, changed, tests, limit):
    """What kills a mutant; None if it survives. The file is whole again afterwards."""
    path = Path(file)
    before = path.read_bytes()
    path.write_text(changed)
    try:
        code, log = run(["-x", *tests], None, limit)
    finally:
        path.write_bytes(before)
    told = re.search(r"^(?:FAILED|ERROR) (\S+)", log, re.MULTILINE)
    return None if code == 0 else told[1] if told else f"exit {code}"


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
    """A line a mutant, then the survivors and the sum."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    book = folder / "verdicts.jsonl"
    known = dict(map(json.loads, book.read_text().splitlines())) if book.exists() else {}
    told = {}
    with tempfile.TemporaryDirectory() as scratch, book.open("a") as verdicts:
        work_in_copy(Path(scratch))
        drawn = list(itertools.islice(draw(sources(), seed), count))
        for file, line, changed in sorted(drawn, key=lambda mutant: sources().index(mutant[0])):
            old, new = Path(file).read_text().splitlines(), changed.splitlines()
            change = "\n".join([f"{file}:{line}", *(x for x in difflib.ndiff(old, new) if x[0] in "-+")])
            if change not in known or (again and known[change] is None):
                known[change] = attempt(file, changed, *reaching(file, line, folder))
                print(json.dumps([change, known[change]]), file=verdicts, flush=True)
            told[change] = known[change]
            print(
                f"{len(told):4} {'killed' if told[change] else 'SURVIVED':9}{file}:{line} {told[change] or ''}",
                flush=True,
            )
        os.chdir(ROOT)
    print(*(change for change, by in told.items() if not by), sep="\n")
    print(f"{sum(map(bool, told.values()))} of {len(told)} mutants killed (seed {seed})")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--count", type=int, default=300, help="mutants to draw")
    options.add_argument("--seed", type=int, default=0, help="of the draw")
    options.add_argument("--again", action="store_true", help="try those anew that survived")
    options.add_argument(
        "--folder", type=Path, default=ROOT / "_build" / "mutate", help="of what was found out"
    )
    main(**vars(options.parse_args()))
