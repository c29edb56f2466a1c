"""Kinds of bad arguments, and what is wrong with the answer to one.

A row of the table says of each argument of a function a good value, its kind and, where the kind does not know them,
further values that are no such thing (TypeError) and that are one but not allowed (ValueError).
"""

import inspect
import random
import re
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NAN, INF = float("nan"), float("inf")
NO_NUMBERS = [None, "fast", "0.1", True, 1j, [0.1, None], torch.tensor(1j)]
NO_COUNTS = [None, "3", 2.5, True, NAN]
NO_MODELS = [None, "net", [], lambda x: x]
KINDS = {  # kind of argument -> (what is no such thing, what is one but not allowed)
    "positive": (NO_NUMBERS, [NAN, INF, -1.0, 0.0]),
    "nonnegative": (NO_NUMBERS, [NAN, INF, -1.0]),
    "at least one": (NO_NUMBERS, [NAN, INF, 0.5]),
    "real": (NO_NUMBERS, [NAN, INF]),
    "numbers": (NO_NUMBERS, []),
    "not zero": (NO_NUMBERS, [NAN, INF, 0.0]),
    "share": (NO_NUMBERS, [NAN, INF, -0.1, 1.0]),
    "from 0 to 1": (NO_NUMBERS, [NAN, INF, -0.1, 1.1]),
    "above 0 to 1": (NO_NUMBERS, [NAN, INF, 0.0, 1.1]),
    "between 0 and 1": (NO_NUMBERS, [NAN, 0.0, 1.0]),
    "between 2 and 4": (NO_NUMBERS, [NAN, INF, 2.0, 4.0]),
    "above 1": (NO_NUMBERS, [NAN, INF, 1.0]),
    "above 2": (NO_NUMBERS, [NAN, INF, 2.0]),
    "rows": (NO_NUMBERS, [NAN, 0.1, [1.0], [[]], np.ones((2, 3, 2)), [[NAN, 1.0]]]),
    "labels": (NO_NUMBERS, [[1.0], [1.0, NAN]]),
    "record": (NO_NUMBERS, [1.0, [1.0], []]),
    "count": (NO_COUNTS, [-1, 0]),
    "count from zero": (NO_COUNTS, [-1]),
    "count from three": (NO_COUNTS, [-1, 2]),
    "at least two": (NO_COUNTS, [-1, 1]),
    "seed": (NO_COUNTS, [2**64, -(2**63) - 1]),
    "seeds": ([None, 3, "ab", (1.5,), (None,)], [(), (2**64,)]),
    "shape": ([None, "3", 2.5, (2, 2.5)], [-1, (2, -1)]),
    "sizes": ([None, 3, "abc", (4, 2.5, 2), (4, None, 2)], [(), (4, 2), (4, 0, 2), (4, -3, 2)]),
    "widths": ([None, 3, "ab", (2.5,), (None,)], [(), (0,), (-2,)]),
    "steps": ([None, 3, "ab", (1.5,), (NAN,)], [(0,), (5, 5), (-1, 3)]),
    "choice": ([None, 3, []], ["nothing such", ""]),
    "optimizer name": ([None, 3], ["adam", ""]),
    "method": ([None, 3], ["power", ""]),
    "betas": (["fast", 1j, (None, 0.9)], [0.9, (0.9,), (0.9, 1.0), (NAN, 0.9)]),
    "model": (NO_MODELS, [nn.ReLU(), nn.Linear(2, 1).requires_grad_(False)]),
    "module": (NO_MODELS, []),
    "loss": ([None, 3, "mse"], [lambda f, y: f, lambda f, y: f.sum() * NAN, lambda f, y: f.detach().sum()]),
    "function": ([None, 3, "mse"], []),
    "batch": ([None, 3, torch.ones(3), (1, 2, 3)], []),
    "batches": ([None, 3, [1], [None]], [[]]),
    "vector": (["fast", [1.0, 2.0]], [torch.ones(5), torch.full((3,), NAN), torch.zeros(3)]),
    "tensor": ([None, 3, "x", [1.0]], []),
    "floats": ([None, 3, "x", [1.0]], [torch.ones(4, 2, dtype=torch.cfloat)]),
    "scheduler": ([3, "x", lambda: None], []),
    "torch optimizer": ([None, 3, nn.Linear(2, 1)], []),
    "exp_lr": ([3, "on"], []),
    "start": ([None, 3, (1.0, 1.0)], []),
    "state": ([None, 3, [1]], [{}]),
    "mapping": ([3, "x", [1]], []),
    "flag": ([None, "no", 1, 0.0], []),
    "dtype": ([None, "float32", 3], [torch.int64]),
    "device": ([None, 2.5], ["nowhere", ""]),
    "path": ([None, 3], []),
    "text": ([None, 3], []),
    "any": ([], []),
}


def name_of(function):
    function = getattr(function, "func", function)  # of a partial
    return (
        function.__qualname__ if hasattr(function, "__qualname__") else type(function).__call__.__qualname__
    )


def parameters(function):
    """The names of its arguments, but for more of the same; None among them stands for any."""
    kinds = inspect.signature(function).parameters.items()
    return {
        name if p.kind is not p.VAR_KEYWORD else None for name, p in kinds if p.kind is not p.VAR_POSITIONAL
    }


def good(row):
    """Good values by name; the dots stand for one that only the function can make."""
    return {name: entry[0] for name, entry in row.items() if entry[0] is not ...}


def bad(row):
    """(name, value, expected error) for each bad value of each argument."""
    for name, (_, kind, *more) in row.items():
        kinds = KINDS[kind.removesuffix(" or none")]
        extra = (*more, [], [])[:2]
        for error, values, others in zip((TypeError, ValueError), kinds, extra, strict=True):
            for value in [*values, *others]:
                if value is not None or kind == kind.removesuffix(" or none"):
                    yield name, value, error


def strangers(state, *, free=()):
    """States that are nearly the given one: an entry missing, of another type, not a number, of another shape.

    `free` names entries of which other values are good.
    """
    for key, value in state.items():
        if key in free:
            continue
        yield {k: v for k, v in state.items() if k != key}
        for other in ("x", NAN, [[[1.0]], "x"], object(), {}):
            if type(other) is not type(value) or isinstance(value, float | list | str):
                yield {**state, key: other}
        if isinstance(value, Mapping):
            yield from ({**state, key: inner} for inner in strangers(value, free=free))


def seen(value, depth=6):
    """All that a caller could see of it, as nested tuples of plain values."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().reshape(-1)
        return (
            str(value.dtype),
            tuple(value.shape),
            value.requires_grad,
            data.view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if depth == 0 or isinstance(value, type):
        return None
    if isinstance(value, Mapping):
        return tuple((str(k), seen(v, depth - 1)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return tuple(seen(v, depth - 1) for v in value)
    if isinstance(value, nn.Module):
        hooks = [(m.training, len(m._forward_pre_hooks), len(m._forward_hooks)) for m in value.modules()]
        return seen({**dict(value.named_parameters()), **dict(value.named_buffers())}, depth - 1), tuple(
            hooks
        )
    if isinstance(value, Optimizer):
        hooks = len(value._optimizer_step_pre_hooks), len(value._optimizer_step_post_hooks)
        return hooks, seen(value.state_dict(), depth - 1)
    if callable(getattr(value, "state_dict", None)):
        return seen(value.state_dict(), depth - 1)
    return value if isinstance(value, int | float | str | complex) else None


def everything(function, given):
    generators = torch.get_rng_state(), np.random.get_state()[1], random.getstate()[1]
    return repr(seen([getattr(function, "__self__", None), given, *generators]))


def complaint(function, name, value, error, given):
    """What is wrong with the answer to a bad value: (sort, words); None where it is refused as it must be."""
    given = {**given, name: value}
    before = everything(function, given)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            result = function(**given)
    except Exception as caught:
        said = f"{type(caught).__name__}: {caught}".replace("\n", " ")[:200]
        if not isinstance(caught, TypeError | ValueError):
            return "raw", said
        if not (re.search(rf"(?<!\w){name}(?!\w)", said) and " must " in said and " got " in said):
            return "unnamed", said
        if not isinstance(caught, error):
            return "other type", said
        return ("changed", said) if everything(function, given) != before else None
    return "silent", repr(result)[:100].replace("\n", " ")
