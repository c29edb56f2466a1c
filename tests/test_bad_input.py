"""Every argument of every public function: a wrong type is a TypeError, a bad value a ValueError, and both name it.

No bad input gives a value, a NaN or an error from further down.
"""

import inspect
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import normcore as nc
from normcore import catapult

NAN, INF = float("nan"), float("inf")
NO_NUMBERS = [None, "fast", "0.1", True, 1j, [0.1, None], torch.tensor(1j)]
BAD = {  # kind of argument -> (what is no such thing, what is one but not allowed)
    "positive": (NO_NUMBERS, [NAN, INF, -1.0, 0.0]),
    "nonnegative": (NO_NUMBERS, [NAN, INF, -1.0]),
    "at least one": (NO_NUMBERS, [NAN, INF, 0.5]),
    "real": (NO_NUMBERS, [NAN, INF]),
    "not zero": (NO_NUMBERS, [NAN, INF, 0.0]),
    "share": (NO_NUMBERS, [NAN, INF, -0.1, 1.0]),
    "between 0 and 1": (NO_NUMBERS, [NAN, 0.0, 1.0]),
    "between 2 and 4": (NO_NUMBERS, [NAN, INF, 2.0, 4.0]),
    "above 2": (NO_NUMBERS, [NAN, INF, 2.0]),
    "rows": (NO_NUMBERS, [NAN, 0.1, [1.0], [[]], np.ones((2, 3, 2)), [[NAN, 1.0]]]),
    "labels": (NO_NUMBERS, [[1.0], [1.0, NAN]]),
    "count": ([None, "3", 2.5, True, NAN], [-1, 0]),
    "count from zero": ([None, "3", 2.5, True, NAN], [-1]),
    "at least two": ([None, "3", 2.5, True], [-1, 1]),
    "shape": ([None, "3", 2.5, (2, 2.5)], [-1, (2, -1)]),
    "steps": ([None, 3, "ab", (1.5,), (NAN,)], [(0,), (5, 5), (-1, 3)]),
    "optimizer name": ([None, 3], ["adam", ""]),
    "method": ([None, 3], ["power", ""]),
    "betas": (["fast", 1j, (None, 0.9)], [0.9, (0.9,), (0.9, 1.0), (NAN, 0.9)]),
    "model": ([None, "net", [], lambda x: x], [nn.ReLU(), nn.Linear(2, 1).requires_grad_(False)]),
    "module": ([None, "net", [], lambda x: x], []),
    "loss": ([None, 3, "mse"], [lambda f, y: f, lambda f, y: f.sum() * NAN, lambda f, y: f.detach().sum()]),
    "function": ([None, 3, "mse"], []),
    "batch": ([None, 3, torch.ones(3)], []),
    "vector": (["fast", [1.0, 2.0]], [torch.ones(5), torch.full((3,), NAN), torch.zeros(3)]),
    "torch optimizer": ([None, 3, nn.Linear(2, 1)], []),
    "exp_lr": ([3, "on"], []),
    "start": ([None, 3, (1.0, 1.0)], []),
    "state": ([None, 3], [{}]),
    "flag": ([], []),
}

MODEL, X, Y = nn.Linear(2, 1).double(), torch.ones(4, 2).double(), torch.zeros(4, 1).double()
LOSS = nn.functional.mse_loss
CORRELATIONS = catapult.WeightCorrelations.draw(10, 2)
CURVATURE = {
    "model": (MODEL, "model"),
    "loss_fn": (LOSS, "loss"),
    "batch": ((X, Y), "batch"),
    "method": ("auto", "method"),
    "chunk_size": (2, "count or none"),
    "seed": (0, "count from zero"),
}
LANCZOS = {"tol": (1e-3, "positive or none"), "max_matvecs": (9, "count")}
RATES = {"lr": (0.1, "positive"), "weight_decay": (0.01, "positive"), "momentum": (0.5, "share")}
SIZE = {
    "grad_sq_norm": (2.0, "positive"),
    "optimizer": ("sgd", "optimizer name"),
    "betas": (None, "betas"),
    "dim": (None, "count or none"),
}
OUTPUT = {
    "output": (1.0, "real"),
    "curvature": (2.0, "positive"),
    "width": (10, "at least one"),
    "input": (1.0, "not zero"),
}

PLAIN = {"weight_decay": (0.01, "real"), "momentum": (0.5, "share")}

TABLE = {
    nc.growth_factor: {"lr": (0.1, "nonnegative"), **PLAIN},
    nc.equivalent_schedule: {
        "lr": ([0.1, 0.1], "nonnegative"),
        **PLAIN,
        "dampening": (0.0, "share"),
        "steps": (2, "count or none"),
    },
    nc.texp_plus_plus: {"lr": ([0.1, 0.1], "nonnegative"), **PLAIN, "steps": (2, "count or none")},
    nc.equivalent_weight_decay: {
        "log_lr": ([0.0, 0.0], "real"),
        "lr": (0.1, "positive"),
        "momentum": (0.5, "share"),
    },
    nc.Constant: {"lr": (0.1, "nonnegative")},
    nc.Constant(0.1).values: {"steps": (3, "count from zero")},
    nc.Constant(0.1).log_values: {"steps": (3, "count from zero")},
    nc.StepDecay: {"lr": (0.1, "nonnegative"), "milestones": ((3,), "steps"), "factor": (0.1, "positive")},
    nc.StepDecay(0.1, (3,)).phases: {"steps": (3, "count")},
    nc.Cosine: {"lr": (0.1, "nonnegative"), "steps": (3, "count")},
    nc.Exponential: {"lr": (0.1, "positive"), "growth": (1.1, "positive")},
    nc.intrinsic_lr: {**RATES, "lr": (0.1, "nonnegative"), "weight_decay": (0.1, "nonnegative")},
    nc.effective_lr: {"lr": (0.1, "nonnegative"), "norm": (1.0, "positive"), "momentum": (0.5, "share")},
    nc.equilibrium: {**RATES, **SIZE},
    nc.rho: {
        **RATES,
        "norm_sq": (1.0, "positive"),
        "grad_sq": (1.0, "nonnegative"),
        "overlap": (0.1, "real"),
        "moved_sq": (None, "flag"),
    },
    nc.relaxation: {
        **RATES,
        "t": (3.0, "real"),
        "lr_ratio": (0.1, "positive"),
        "weight_decay_ratio": (0.1, "nonnegative"),
        "optimizer": ("sgd", "optimizer name"),
        "ratio_lr": (None, "flag"),
        "ratio_wd": (None, "flag"),
    },
    nc.time_to_equilibrium: {
        "norm": (1.0, "positive"),
        **RATES,
        **SIZE,
        "tolerance": (0.1, "between 0 and 1"),
    },
    nc.NormMonitor: {
        "optimizer": (torch.optim.SGD(MODEL.parameters(), lr=0.1), "torch optimizer"),
        "model": (MODEL, "module or none"),
        "every": (1, "count"),
        "horizon": (10, "count"),
        "exp_lr": (None, "exp_lr"),
    },
    nc.NormMonitor(torch.optim.SGD(MODEL.parameters(), lr=0.1)).load_state_dict: {"state": (..., "state")},
    nc.hessian_top_eigenvalue: {**CURVATURE, **LANCZOS, "start": (None, "vector")},
    nc.hessian_eigenvalues: {**CURVATURE, **LANCZOS, "k": (2, "count")},
    nc.hessian_trace: {**CURVATURE, "matvecs": (3, "at least two")},
    nc.ntk_top_eigenvalue: {
        **CURVATURE,
        **LANCZOS,
        "x": (X, "flag"),
        "start": (None, "vector"),
        "method": ("lanczos", "method"),
    },
    nc.SharpnessMonitor: {
        "loss_fn": (LOSS, "function"),
        "batch": ((X, Y), "batch"),
        "matvecs": (2, "count"),
        "refresh": (2, "count"),
        "tol": (0.1, "positive"),
        "method": ("auto", "method"),
        "chunk_size": (2, "count or none"),
    },
    nc.SharpnessMonitor(LOSS, (X, Y)): {"model": (MODEL, "model")},
    nc.SharpnessMonitor(LOSS, (X, Y)).load_state_dict: {"state": ({"vector": None, "readings": 0}, "state")},
    nc.lr_phases: {
        "curvature": (2.0, "positive"),
        "max_constant": (3.0, "above 2 or none"),
        "loss_scale": (1.0, "positive"),
    },
    nc.lr_phases(2.0).phase: {"lr": (0.1, "positive")},
    catapult.simulate: {
        **OUTPUT,
        "lr": (0.1, "positive"),
        "steps": (3, "count from zero"),
        "label": (0.5, "real"),
    },
    catapult.edges: {**OUTPUT, "input": (1.0, "real")},
    catapult.duration: {"scaled_curvature": (3.0, "between 2 and 4"), "width": (10, "at least one")},
    catapult.final_curvature: {"scaled_curvature": (3.0, "between 2 and 4")},
    catapult.peak: {"scaled_curvature": (3.0, "between 2 and 4")},
    catapult.initial_state: {
        "width": (10, "count"),
        "size": (2, "shape"),
        "input": (1.0, "real"),
        "seed": (0, "count from zero"),
    },
    catapult.WeightCorrelations.from_weights: {"u": (np.ones((3, 2)), "real"), "v": (np.ones(3), "real")},
    catapult.WeightCorrelations.draw: {
        "width": (10, "count"),
        "dim": (2, "count"),
        "size": ((2,), "shape"),
        "seed": (0, "count from zero"),
    },
    catapult.WeightCorrelations: {
        "vv": (1.0, "flag"),
        "uu": (np.eye(2), "flag"),
        "uv": (np.ones(2), "flag"),
        "width": (10, "count"),
    },
    CORRELATIONS.outputs: {"inputs": (np.eye(2), "rows")},
    CORRELATIONS.kernel: {"inputs": (np.eye(2), "rows")},
    CORRELATIONS.top: {"inputs": (np.eye(2), "rows")},
    catapult.simulate_full: {
        "start": (CORRELATIONS, "start"),
        "inputs": (np.eye(2), "rows"),
        "labels": (np.ones(2), "labels"),
        "lr": (0.1, "positive"),
        "steps": (3, "count from zero"),
    },
}


def name_of(function):
    return getattr(function, "__qualname__", type(function).__name__)


def arguments(function):
    """Good values by name, of the arguments that the function has."""
    names = inspect.signature(function).parameters
    return {name: value for name, (value, _) in TABLE[function].items() if name in names and value is not ...}


def cases():
    for function, row in TABLE.items():
        for name in [name for name in inspect.signature(function).parameters if name in row]:
            kind = row[name][1].removesuffix(" or none")
            for error, values in zip((TypeError, ValueError), BAD[kind], strict=True):
                for value in values:
                    if value is None and kind != row[name][1]:
                        continue
                    said = str(value).split(" at 0x")[0].replace("\n", "")
                    yield pytest.param(function, name, value, error, id=f"{name_of(function)}-{name}-{said}")


@pytest.mark.parametrize(("function", "name", "value", "error"), list(cases()))
def test_bad_input(function, name, value, error):
    given = {**arguments(function), name: value}
    if "betas" in given and name in ("betas", "dim"):
        given.update(optimizer="adamw", momentum=0.0, grad_sq_norm=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(error, match=name):
            function(**given)


@pytest.mark.parametrize("function", TABLE, ids=name_of)
def test_good_input(function):
    if not any(value is ... for value, _ in TABLE[function].values()):
        function(**arguments(function))


def test_every_public_function_of_these_rooms_is_here():
    rooms = ("curvature", "norm_dynamics", "catapult", "schedules")
    results = {"EigenResult", "Equilibrium", "FullRun", "WarmUpRun"}  # made by the package, not by a user
    public = [getattr(nc, name) for name in nc.__all__] + [
        getattr(catapult, name) for name in catapult.__all__
    ]
    for one in public:
        if callable(one) and one.__module__.split(".")[1] in rooms and one.__name__ not in results:
            assert one in TABLE, one.__name__
            assert set(inspect.signature(one).parameters) <= set(TABLE[one]), one.__name__
