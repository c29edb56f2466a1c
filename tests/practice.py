"""Measure book/practice.md anew: run the tests that its rows name, and write what they compared or raised.

python tests/practice.py [WORD]    # all rows, or those that hold the word; with the extra [integrations] installed

Of a row the tests' names stand in the last column, as sentences, [in brackets] which of their cases. A figure is the
left side of a passed `figure < bound`, bound <= 1e-3; an error is what `pytest.raises` caught.
"""

import ast
import functools
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "book" / "practice.md"
NUMBER = r"(\d[\d.]*(?:e[+-]?\d+)?)"
BELOW = re.compile(rf"(?<![\w.-]){NUMBER} < {NUMBER}")
MARKUP = re.compile(r"([\\`*_{}\[\]<>|#$])")
RIGHT = "right"
"""Of tests that compare bits, or numbers with another ruler than a bound."""


def rows(text):
    """The lines of the tables, in cells: situation, before, now, tests."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [cells for cells in found if cells[0] != "Situation" and not cells[0].startswith("---")]


def named(cells):
    """The tests of a row: (function, case or None)."""
    parts = [re.fullmatch(r"([^\[]+?)(?: \[(.+)\])?", part.strip()) for part in cells[3].split(";")]
    return [(f"test_{part[1].replace(' ', '_')}", part[2]) for part in parts]


@functools.cache
def functions():
    """Name of a test function -> the files that have one."""
    found = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[node.name].append(path)
    return found


def figures(explanation):
    """The figures of an assertion that are smaller than a small bound."""
    pairs = BELOW.findall(explanation.splitlines()[0])
    return [float(value) for value, bound in pairs if float(bound) <= 1e-3]


def said(error):
    """What was refused, without what was given, paths and brackets, in the page's markup."""
    words = re.split(r",? got | \(|: | /|\n", str(error))[0][:80].rstrip(" ,:;")
    return f"{type(error).__name__}: " + MARKUP.sub(r"\\\1", words)


class Listener:
    """A plugin that runs the wanted tests only, and keeps what each of them told."""

    def __init__(self, wanted):
        self.wanted = wanted
        self.figures, self.errors, self.outcomes = defaultdict(list), defaultdict(list), {}
        self.now = None

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if any(self.is_of(self.key(item), want) for want in self.wanted)]

    @staticmethod
    def key(item):
        return item.originalname, item.callspec.id if hasattr(item, "callspec") else None

    @staticmethod
    def is_of(key, want):
        """Whether a test with its case is the one that is meant."""
        return key[0] == want[0] and (want[1] is None or want[1] in (key[1] or ""))

    def pytest_runtest_setup(self, item):
        self.now = self.key(item)

    def pytest_assertion_pass(self, item, expl):
        self.figures[self.key(item)] += figures(expl)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[self.now] = report.outcome

    def told(self, cells):
        """The words for the column "Now"; those that stand there if a library is missing."""
        keys = [key for key in self.outcomes for want in named(cells) if self.is_of(key, want)]
        outcomes = {self.outcomes[key] for key in keys}
        if outcomes != {"passed"}:
            return "FAILED" if "failed" in outcomes else cells[2]
        values = [value for key in keys for value in self.figures[key]]
        errors = list(dict.fromkeys(error for key in keys for error in self.errors[key]))
        gap = [f"{max(values):.0e}"] if values else []
        return "; ".join(gap + errors[:2]) or RIGHT


def measure(word):
    """Run and write."""
    text = PAGE.read_text(encoding="utf-8")
    chosen = [cells for cells in rows(text) if word in " ".join(cells)]
    known, wanted = functions(), [want for cells in chosen for want in named(cells)]
    listener = Listener(wanted)
    context = type(pytest.raises(ValueError))
    leave = context.__exit__

    def left(self, kind, error, trace):
        if isinstance(error, Exception):
            listener.errors[listener.now].append(said(error))
        return leave(self, kind, error, trace)

    context.__exit__ = left
    sys.pycache_prefix = tempfile.mkdtemp()  # test modules compiled before do not tell their assertions
    files = sorted({str(path) for name, _ in wanted for path in known[name]})
    options = ["-q", "-p", "no:cacheprovider", "-o", "enable_assertion_pass_hook=true", "--rootdir"]
    pytest.main([*options, str(TESTS.parent), *files], plugins=[listener])
    for cells in chosen:
        line = "| " + " | ".join(cells) + " |"
        assert line in text, line
        text = text.replace(line, "| " + " | ".join([*cells[:2], listener.told(cells), cells[3]]) + " |")
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    measure(" ".join(sys.argv[1:]))
