"""Equal things have equal fingerprints, in every process; different ones do not."""

import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sweep_cells import Counting, draw
from torch import nn

from normcore.lab import mlp
from normcore.lab.fingerprint import fingerprint


@dataclass(frozen=True, eq=False)
class Fields:
    a: object
    b: object = 1


class Slots:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a


class Own:
    def __init__(self, name):
        self.name, self.noise = name, object()

    def fingerprint(self):
        return self.name


def adder(n, scale=2):
    def add(x):
        return scale * x + n

    return add


def test_equal_values_agree_and_different_ones_do_not():
    values = {
        "none": None, "int": 1, "float": 1.0, "bool": True, "text": "1", "bytes": b"1", "list": [1], "tuple": (1,),
        "nested": [[1]], "dict": {"a": 1}, "other key": {"b": 1}, "set": {1}, "array": np.array([1]),
        "float array": np.array([1.0]), "column": np.array([[1]]), "numpy scalar": np.int64(1),
        "tensor": torch.tensor([1]), "double": torch.tensor([1.0], dtype=torch.float64), "single": torch.tensor([1.0]),
        "dtype": torch.float32, "path": Path("1"), "range": range(1), "class": nn.Linear, "class 2": nn.Conv2d,
        "function": draw, "function 2": adder, "closure": adder(1), "closure 2": adder(2), "closure 3": adder(1, 3),
        "partial": functools.partial(mlp, (4, 3, 2)), "partial 2": functools.partial(mlp, (4, 3, 3)),
        "builtin": len, "builtin 2": max, "fields": Fields(1), "fields 2": Fields(1, 2), "slots": Slots(1),
        "slots 2": Slots(2), "own": Own("a"), "own 2": Own("b"), "method": Own("a").fingerprint,
        "module": nn.MSELoss(), "module 2": nn.MSELoss(reduction="sum"), "experiment": Counting(),
        "net": mlp((4, 3, 2), seed=0), "net 2": mlp((4, 3, 2), seed=1), "lambda": lambda x: x, "lambda 2": lambda x: -x,
        "generator": torch.Generator().manual_seed(0), "generator 2": torch.Generator().manual_seed(1),
    }  # fmt: skip
    prints = {name: fingerprint(value) for name, value in values.items()}
    assert len(set(prints.values())) == len(values)
    assert {name: fingerprint(value) for name, value in values.items()} == prints
    assert fingerprint(adder(1)) == prints["closure"] and fingerprint(Fields(1)) == prints["fields"]
    assert fingerprint(mlp((4, 3, 2), seed=0)) == prints["net"]


def test_order_matters_in_lists_only():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({3, 1, 2}) == fingerprint({2, 3, 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_a_value_that_holds_itself_ends():
    loop, other = [1], [2]
    loop.append(loop)
    other.append(other)
    assert fingerprint(loop) != fingerprint(other)


def test_comments_docstrings_and_layout_do_not_count(tmp_path, monkeypatch):
    texts = {
        "one": "def f(x):\n    return x + 1\n",
        "two": 'def f(x):\n    """Add one."""\n    # a remark\n    return (x +\n            1)\n',
        "three": "def f(x):\n    return x + 2\n",
        "four": "def f(x, y=0):\n    return x + 1\n",
    }
    monkeypatch.syspath_prepend(tmp_path)
    prints = {}
    for name, text in texts.items():
        (tmp_path / f"code_{name}.py").write_text(text)
        function = __import__(f"code_{name}").f
        function.__module__ = "code"
        prints[name] = fingerprint(function)
    assert prints["one"] == prints["two"] and len(set(prints.values())) == 3


def test_code_without_a_text_is_told_by_its_instructions():
    def made(text):
        space = {"__name__": "made"}
        exec(text, space)
        return fingerprint(space["f"])

    inner = "def f(x):\n    return [(lambda y: y + {0})(x)]"
    assert made(inner.format(1)) == made(inner.format(1)) != made(inner.format(2))


def test_another_process_with_other_hashes_gives_the_same():
    values = "[Counting(), {'b', 'a'}, eval(\"lambda x: x in {'a', 'b', 'c', 'd'}\")]"
    imports = "from sweep_cells import Counting; from normcore.lab.fingerprint import fingerprint"
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"{imports}; print(fingerprint({values}))"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    here = {"Counting": Counting, "__name__": "__main__"}
    assert run.stdout.strip() == fingerprint(eval(values, here))


def test_what_has_nothing_to_hash_is_refused():
    with pytest.raises(TypeError, match="a object has no fields to hash; give it a method fingerprint"):
        fingerprint([object()])
