"""Change one operator, number, condition, call or keyword of the core at a time, run the tests that enter its function,
and list what none of them noticed: `make mutate`.

cosmic-ray makes the changes, in a scratch copy, so that a killed run leaves no damage. They are drawn with a seed, one
at each drawn place, but not in annotations, in the text of an error, nor at zip's strict. First each test file of the
room is run as it is: which functions of the core does a test enter, and how long does it take? A mutant is tried in a
fork of this process, which has torch imported already, with the tests that enter its function, the quickest ones
first: its doctests and the tests that name its module, then, if it still lives, all others of its room, then those
that start processes and the table of bad input. Verdicts stand in _build/mutate: a run goes on where it stopped, and
`--again` tries the survivors anew.
"""

import argparse
import ast
import difflib
import functools
import hashlib
import importlib
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
from contextlib import redirect_stdout, suppress
from multiprocessing import get_context
from pathlib import Path

import hypothesis
import pytest
import torch  # noqa: F401  once, for all forks
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Name

ROOT = Path(__file__).parent.parent
CORE = ["files", "schedules", "checks", "sharded", "catapult"]
CORE += ["norm_dynamics", "curvature", "invariance", "equivalence"]
BAD_INPUT, SHARDED = Path("tests/test_bad_input.py"), Path("tests/test_sharded.py")
"""They call everything, and what knows of shards."""
STARTS = "subprocess|torchrun"
"""In a test file whose tests start processes, in which they may enter anything."""


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


class Watch:
    """Plugin: how long each test takes, and which functions of the core it enters. What is entered while a file is
    read, or in a fixture, counts for all its tests.
    """

    def __init__(self):
        self.seconds, self.failed = defaultdict(float), []
        self.entered = defaultdict(set)
        self.test = ""
        sys.settrace(self.see)

    def see(self, frame, event, arg):
        self.entered[self.test].add(frame.f_code)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item):
        self.test = item.nodeid
        yield
        self.test = ""

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        self.failed += [report.nodeid] if report.failed else []

    def told(self):
        """{test: (seconds, functions)}."""
        sys.settrace(None)
        if self.failed:
            raise SystemExit(f"{self.failed} do not pass without a mutant")
        return {
            test: (s, self.of_the_core(self.entered[""] | self.entered[test]))
            for test, s in self.seconds.items()
        }

    def of_the_core(self, entered):
        """The sorted names of the functions, each after its file."""
        places = [(os.path.relpath(code.co_filename), code.co_qualname) for code in entered]
        return sorted(f"{path} {name}" for path, name in places if path.startswith("normcore" + os.sep))


class Chosen:
    """Plugin: some tests only, in this order."""

    def __init__(self, tests):
        self.rank = {test: rank for rank, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((x for x in items if x.nodeid in self.rank), key=lambda x: self.rank[x.nodeid])


def in_fork(work, limit):
    """What a function returns in a fork, which may use the processor for so many seconds; None if it does not."""

    def child():
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        hypothesis.settings.register_profile(
            "mutate",
            derandomize=True,
            deadline=None,
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        )
        hypothesis.settings.load_profile("mutate")
        with open("log", "w") as log, redirect_stdout(log):
            Path("answer").write_text(json.dumps(work()))
        os._exit(0)

    Path("answer").unlink(missing_ok=True)
    process = get_context("fork").Process(target=child)
    process.start()
    process.join(100 * limit)
    if process.is_alive():
        process.kill()
        raise TimeoutError(
            f"no end in {100 * limit} seconds on the clock: waits for something, or the machine is busy"
        )
    return json.loads(Path("answer").read_text()) if process.exitcode == 0 else None


def ask(arguments, plugin):
    """pytest's exit code."""
    return pytest.main(["-q", "-p", "no:cacheprovider", "-x", *arguments], plugins=[plugin])


@functools.cache
def watched(file, notes):
    """{test: (seconds, functions)} of a test file, from an earlier run if the file is the same."""
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    note = notes / f"{file.replace('/', '-')}-{digest[:12]}.json"

    def work():
        watch = Watch()
        if ask([file], watch) not in (0, 5) and not watch.failed:  # 5: no test there
            raise SystemExit(f"{file} cannot be read")
        libraries = [
            n for n, m in sys.modules.items() if "site-packages" in (getattr(m, "__file__", "") or "")
        ]
        return watch.told(), libraries

    if not note.exists():
        answer = in_fork(work, 3600)
        if answer is None:
            raise SystemExit(Path("log").read_text())
        note.write_text(json.dumps(answer))
        print(f"watched  {file}: {sum(s for s, _ in answer[0].values()):.1f} s", flush=True)
    tests, libraries = json.loads(note.read_text())
    for name in libraries:  # once, for all forks to come
        with suppress(Exception):
            importlib.import_module(name)
    return tests


def function_at(source, line):
    """The qualified name of the innermost function around a line, empty outside of all."""

    def inside(node, name):
        for child in ast.iter_child_nodes(node):
            if hasattr(child, "lineno") and child.lineno <= line <= child.end_lineno:
                ends = {ast.FunctionDef: ".<locals>.", ast.ClassDef: "."}.get(type(child))
                return inside(child, name + child.name + ends if ends else name)
        return name

    name = inside(ast.parse(source), "")
    return name.removesuffix(".<locals>.") if name.endswith(".<locals>.") else ""


def enters(seen, file, name):
    """Whether a test has seen the function of a file, or any of that file."""
    return any(x.startswith(f"{file} ") and name in ("", x.split()[1]) for x in seen)


def tests_of(file, line, part, notes):
    """{test: seconds}, in the order to be asked, of those that enter the function of this line; outside of all, of those
    that enter the file. Part 0: its doctests and the tests that name it; part 1: all others of its room; part 2: those
    that start processes, in which they may enter anything, and BAD_INPUT.
    """
    path = Path(file)
    folder = Path("tests") / path.relative_to("normcore").parent
    room = sorted(folder.glob("test_*.py" if len(path.parts) > 2 else f"test_{path.name}"))
    late = {test for test in room if re.search(STARTS, test.read_text())}
    own = {test for test in room if test.stem == f"test_{path.stem}"}
    own = own or {test for test in room if re.search(rf"\b{path.stem}\b", test.read_text())}
    late |= {SHARDED} if "sharded" in path.read_text() and SHARDED.exists() else set()
    parts = {path} | own - late, set(room) - own - late, late | {x for x in [BAD_INPUT] if x.exists()}
    name = function_at(path.read_text(), line)
    met = []
    for one in sorted(parts[part]):
        tests = watched(str(one), notes).items()
        met.append({test: s for test, (s, seen) in tests if one in late or enters(seen, file, name)})
    # a file at a time, so that a fixture is made once
    quick = sorted(met, key=lambda tests: sum(tests.values()))
    return {test: tests[test] for tests in quick for test in sorted(tests, key=tests.get)}


def attempt(file, changed, tests, moment):
    """Which test kills a mutant; None if it survives. The file is whole again afterwards. The moment, another one for
    each mutant, is when the file was changed, so that no bytecode of another is taken for its own.
    """
    path, limit = Path(file), 30 + 3 * int(sum(tests.values()))
    before, stat = path.read_bytes(), path.stat()
    path.write_text(changed)
    os.utime(path, (moment, moment))
    try:
        code = in_fork(
            lambda: ask(dict.fromkeys(test.split("::")[0] for test in tests), Chosen(tests)), limit
        )
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if code in (0, 5):  # 5: no test there
        return None
    told = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", Path("log").read_text(), re.MULTILINE)
    return told[1] if told else "no end, or a crash"


def work_in_copy(folder):
    """Copy the code and its tests, and work there: imports and relative paths mean the copy."""
    for part in ("normcore", "tests", "book"):  # a test reads a page of the book
        ignored = shutil.ignore_patterns("__pycache__", "*.ipynb")
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
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
        for part in range(3):
            for moment, (change, (file, line, changed)) in enumerate(drawn, 1):
                if change not in killed and (again or (change, part) not in known):
                    tests = tests_of(file, line, part, folder)
                    try:
                        by = attempt(file, changed, tests, moment + part * len(drawn)) if tests else None
                    except TimeoutError as late:  # no verdict
                        print(f"{file}:{line}: {late}", flush=True)
                        continue
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
