"""The driver of `make mutate`: a fault is planted, noticed, and gone again; tests that look at nothing are told of."""

import re
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("cosmic_ray", reason="pip install -e '.[mutate]'")
import mutate

SOURCE = '''"""A module."""


def double(x: int | None, *, loud: bool = True) -> int | None:
    if x is None:
        raise ValueError(f"x must not be None, got {1 + 1}")
    return 2 * x
'''
BLIND = "from normcore.files import double\n\n\ndef test_it():\n    double(3)\n"
LOOKS = BLIND.replace("double(3)", "assert double(3) == 6")


def test_text_of_errors_and_signatures_stay():
    places = mutate.places(SOURCE, mutate.operators())
    found = {(line, family.removeprefix("core/")) for (line, _), family in places}
    assert {family for line, family in found if line == 4} == {"ReplaceTrueWithFalse"}
    assert {line for line, _ in found} == {4, 5, 7}
    assert mutate.places("list(zip(a, b, strict=True))", mutate.operators()) == {}


def test_every_kind_of_change_is_made():
    source = "f(a, k=2)\nx = a < 1 and not b\nfor i in y:\n    x += i * 3\n"
    known = mutate.operators()
    ways = [way for found in mutate.places(source, known).values() for way in found]
    changed = {mutate.mutate_code(source, known[name], occurrence) for name, occurrence in ways}
    for part in ("None\n", "f(a, **{})", "k= 3", "a <= 1", "a < 1 or not b", "and  b", "in []:", "i / 3"):
        assert any(part in text for text in changed), part
    assert source not in changed and not any("<<" in text for text in changed)


@pytest.mark.parametrize(
    ("line", "name"), [(1, ""), (3, "f"), (4, "f"), (6, "f.<locals>.g"), (8, ""), (10, "A.h")]
)
def test_the_function_around_a_line_has_python_s_name(line, name):
    source = "x = 1\n\ndef f(a, b=2):\n    if a:\n        def g():\n            return b\n"
    source += "class A:\n    y = 3\n    def h(self):\n        return 4\n"
    assert mutate.function_at(source, line) == name


@pytest.fixture
def judge(tmp_path):
    """A project of one module; what the driver says of it with these tests."""
    (tmp_path / "normcore").mkdir()
    (tmp_path / "tests").mkdir()
    source = SOURCE.replace(", *, loud: bool = True", "")
    (tmp_path / "normcore" / "files.py").write_text(source)
    (tmp_path / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\naddopts = '--import-mode=importlib'\n"
    )
    shutil.copy(mutate.__file__, tmp_path / "tests")

    def run(tests, *options):
        (tmp_path / "tests" / "test_files.py").write_text(tests)
        command = [sys.executable, "tests/mutate.py", *options]
        told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (tmp_path / "normcore" / "files.py").read_text() == source
        return told.stdout + told.stderr

    return run


@pytest.mark.slow
def test_a_mutant_is_killed_by_a_test_that_looks_and_survives_one_that_does_not(judge):
    blind = judge(BLIND)
    assert "survived normcore/files.py:7" in blind and "+     return" in blind  # the control
    killed, drawn = map(int, re.search(r"(\d+) of (\d+) mutants killed", blind).groups())
    assert killed < drawn
    looks = judge(LOOKS, "--again")
    assert f"\n{drawn} of {drawn} mutants killed" in looks and looks.count("\nkilled") == drawn - killed
    assert (
        judge(BLIND, "--again").split() == looks.splitlines()[-1].split()
    )  # what is dead is not tried again


@pytest.mark.slow
def test_a_test_that_fails_without_a_mutant_kills_nothing(judge):
    told = judge(LOOKS.replace("6", "7"))
    assert "do not pass without a mutant" in told and "killed" not in told
