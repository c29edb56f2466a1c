"""A name for what an experiment computes: equal for equal code and data, whatever the process."""

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device, PurePath)


def fingerprint(value: Any) -> str:
    """Hash a value by what it is made of: numbers, arrays, functions with their code, objects with their fields.

    The code of a function or class is its own text without comments and docstrings (of a lambda the bytecode,
    which changes with the version of Python); what it calls is not followed. Dictionaries and sets count without their order.

    Args:
        value: anything built of numbers, strings, arrays, tensors, containers, functions, classes, partials
            and objects with fields. An object with a method `fingerprint()` is what that returns.

    Returns:
        64 hexadecimal digits, SHA-256.

    Raises:
        TypeError: something in it has neither fields nor a method `fingerprint()`.

    Example:
        >>> fingerprint({"a": 1, "b": (2.0, [3])}) == fingerprint({"b": (2.0, [3]), "a": 1})
        True
        >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 2)
        False

    """
    return _digest(value, ())


def _digest(value: Any, above: tuple[int, ...]) -> str:
    """Hash the kind of a value and its parts, each by its own hash; `above` are the objects it is in."""
    if id(value) in above:
        return f"in itself, {above[::-1].index(id(value))} up"
    kind, parts = _describe(value)
    hasher = hashlib.sha256(f"{type(value).__module__}.{type(value).__qualname__} {kind}".encode())
    inner = (*above, id(value))
    for part in parts:
        hasher.update(part if isinstance(part, bytes) else _digest(part, inner).encode())
    return hasher.hexdigest()


def _describe(value: Any) -> tuple[str, Sequence[Any]]:
    """What says how a value differs from others of its type: a text, and parts to be hashed in turn."""
    if isinstance(value, PLAIN):
        return repr(value), ()
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return _describe_array(value)
    if isinstance(value, Mapping):
        return "mapping", sorted(_digest(pair, ()).encode() for pair in value.items())
    if isinstance(value, Set):
        return "set", sorted(_digest(item, ()).encode() for item in value)
    if isinstance(value, (list, tuple)):
        return str(len(value)), value
    if isinstance(value, (functools.partial, MethodType, FunctionType, BuiltinFunctionType, type)):
        return _describe_code(value)
    if isinstance(value, torch.Generator):
        return "generator", (value.get_state(),)
    return _describe_object(value)


def _describe_array(value: Tensor | np.ndarray | np.generic) -> tuple[str, Sequence[Any]]:
    """Shape, dtype and bytes."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return f"{tuple(value.shape)} {value.dtype} {value.requires_grad}", (flat.numpy().tobytes(),)
    array = np.asarray(value)
    if array.dtype.hasobject:
        return f"{array.shape} of objects", array.ravel().tolist()
    return f"{array.shape} {array.dtype.str}", (array.tobytes(),)


def _describe_code(value: Any) -> tuple[str, Sequence[Any]]:
    """Name and text of a function or class, with what a function carries along."""
    if isinstance(value, functools.partial):
        return "partial", (value.func, value.args, value.keywords)
    if isinstance(value, MethodType):
        return "method", (value.__self__, value.__func__)
    name = f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, BuiltinFunctionType):
        return name, ()
    if isinstance(value, type):
        return name, (_source(value),)
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    return name, (_source(value), value.__defaults__, value.__kwdefaults__, cells)


def _describe_object(value: Any) -> tuple[str, Sequence[Any]]:
    """The class and the fields."""
    if callable(own := getattr(value, "fingerprint", None)):
        return "own", (own(),)
    slots = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())]
    fields = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    fields.update(getattr(value, "__dict__", {}))
    if not fields and not hasattr(value, "__dict__"):
        raise TypeError(f"a {type(value).__qualname__} has no fields to hash; give it a method fingerprint()")
    return "object", (type(value), fields)


@functools.lru_cache(maxsize=1024)
def _source(value: FunctionType | type) -> str:
    """The text without comments, layout and docstrings; of a lambda, or without a text, the instructions."""
    code = value.__code__ if isinstance(value, FunctionType) else None
    if code is not None and code.co_name == "<lambda>":  # there may be several on a line
        return _instructions(code)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    except (OSError, TypeError, SyntaxError):
        return "" if code is None else _instructions(code)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def _instructions(code: CodeType) -> str:
    """Bytecode, names and constants, those of inner functions too."""
    constants = [_instructions(c) if isinstance(c, CodeType) else _digest(c, ()) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"
