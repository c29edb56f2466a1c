"""The table of bad input: the core."""

import copy
from functools import partial

import numpy as np
import torch
from bad_input import INF, NAN, strangers
from torch import nn

import normcore as nc
from normcore import catapult

MODEL, X, Y = nn.Linear(2, 1).double(), torch.ones(4, 2).double(), torch.zeros(4, 1).double()
LOSS = nn.functional.mse_loss
OPTIMIZER = torch.optim.SGD(MODEL.parameters(), lr=0.1)
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
    "betas": (None, "any"),
    "dim": (None, "any"),
}
ADAMW = {"optimizer": "adamw", "betas": (0.9, 0.999)}
OF_ADAMW = {"betas": (None, "betas or none"), "dim": (9, "count or none")}
OUTPUT = {
    "output": (1.0, "real"),
    "curvature": (2.0, "positive"),
    "width": (10, "at least one"),
    "input": (1.0, "not zero"),
}
PLAIN = {"weight_decay": (0.01, "real"), "momentum": (0.5, "share")}
T = {"t": (3, "nonnegative")}
SCHEDULE = nc.equivalent_schedule(0.1, 0.01, steps=5)
NO_ARRAYS = ["fast", True, 1j, [0.1, None]]
DATA = {
    "theta": (X, "any", [None, *NO_ARRAYS]),
    "buf": (X, "any", NO_ARRAYS, [X[0]]),
    "t": (3, "count from zero", [], [6]),
}

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 2)).double()
BATCH = torch.randn(8, 4).double(), torch.randint(2, (8,))
CROSS = nn.functional.cross_entropy
REPORT = nc.scale_invariance(NET, CROSS, BATCH)
TAGGED = torch.optim.SGD(nc.param_groups(NET, REPORT), lr=0.1, weight_decay=0.01, momentum=0.9)
OTHER = nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 2)).double()
ADAM = torch.optim.Adam(NET.parameters(), weight_decay=0.1)


def converted():
    """A net under an ExpLR, after two steps, and the ExpLR."""
    net = copy.deepcopy(NET)
    groups = nc.param_groups(net, REPORT)
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.1, momentum=0.9)
    exp_lr = nc.ExpLR(optimizer, net)
    for _ in range(2):
        optimizer.zero_grad()
        CROSS(net(BATCH[0]), BATCH[1]).backward()
        optimizer.step()
    return net, exp_lr


EXP_NET, EXP_LR = converted()
SAVED = {
    "model": copy.deepcopy(EXP_NET.state_dict()),
    "optimizer": copy.deepcopy(EXP_LR.optimizer.state_dict()),
    "exp_lr": EXP_LR.state_dict(),
}
STRANGE_GAUGES = [
    *strangers(SAVED["exp_lr"], free=("names", "norms", "doublings", "ratio", "decoupled")),
    *(
        {**SAVED["exp_lr"], "groups": {0: {**SAVED["exp_lr"]["groups"][0], key: value}}}
        for key, value in (
            ("x", 0.0),
            ("x", INF),
            ("x", None),
            ("ratio", NAN),
            ("ratio", "x"),
            ("doublings", 0.5),
        )
    ),
]
STRANGE_SAVED = [
    *({**SAVED, "exp_lr": state} for state in STRANGE_GAUGES),
    *({**SAVED, "model": value} for value in (None, "x", {}, {"0.weight": "x"}, [1])),
    *({**SAVED, "optimizer": value} for value in (None, "x", {}, {"param_groups": 3, "state": {}}, [1])),
    *({key: value for key, value in SAVED.items() if key != name} for name in ("model", "optimizer")),
]
MONITOR = nc.NormMonitor(torch.optim.SGD(copy.deepcopy(MODEL).parameters(), lr=0.1, weight_decay=0.1))
MONITOR.optimizer.step()
SHARPNESS = nc.SharpnessMonitor(LOSS, (X, Y))
DIAGNOSIS = nc.diagnose(NET, torch.optim.SGD(NET.parameters(), lr=0.1), BATCH, loss_fn=CROSS, steps=3)

FORWARD = (None, "function or none")
CORE = {
    nc.growth_factor: {
        "lr": (0.1, "nonnegative"),
        "weight_decay": (0.01, "nonnegative"),
        "momentum": (0.5, "share"),
    },
    nc.equivalent_schedule: {
        "lr": ([0.1, 0.1], "nonnegative"),
        **PLAIN,
        "start": ("zero", "choice"),
        "nesterov": (False, "flag"),
        "dampening": (0.0, "share"),
        "decoupled": (False, "flag"),
        "degree": (1, "count from zero", [], [3]),
        "steps": (2, "count or none"),
    },
    nc.exponential_lr: {"lr": (0.1, "nonnegative"), **PLAIN, "steps": (3, "count")},
    nc.texp: {
        "phases": (
            [(0.1, 3), (0.01, 2)],
            "any",
            [
                None,
                3,
                "ab",
                [3],
                [(0.1, "3")],
                [("0.1", 3)],
                [(None, 3)],
                [(0.1, 2.5)],
                [(True, 3)],
                [(0.1, True)],
                [(1j, 3)],
                {},
            ],
            [
                [],
                [(0.1,)],
                [(0.1, 3, 4)],
                [(0.0, 3)],
                [(-0.1, 3)],
                [(NAN, 3)],
                [(INF, 3)],
                [(0.1, 0)],
                [(0.1, -3)],
            ],
        ),
        "weight_decay": (0.01, "nonnegative", [], [[0.01], [0.01] * 3, [0.01, NAN]]),
        "momentum": (0.5, "share"),
        "instant_decay": (True, "flag"),
    },
    nc.texp_plus_plus: {
        "lr": ([0.1, 0.1], "nonnegative", [], [[], [[0.1]], [60.0, 60.0]]),
        **PLAIN,
        "steps": (2, "count or none", [], [3]),
    },
    nc.equivalent_weight_decay: {
        "log_lr": ([0.0, 0.0], "real"),
        "lr": (0.1, "positive"),
        "momentum": (0.5, "share"),
    },
    SCHEDULE.to_wd_free: DATA,
    SCHEDULE.from_wd_free: DATA,
    nc.follow: {
        "optimizer": (
            torch.optim.SGD(MODEL.parameters(), lr=0.1, momentum=0.9),
            "torch optimizer",
            [torch.optim.RMSprop(MODEL.parameters()), ADAM],
        ),
        "schedule": (SCHEDULE, "any", [None, 3, [0.1] * 5, nc.Constant(0.1)], []),
        "t": (0, "count from zero", [], [5]),
    },
    nc.Constant: {"lr": (0.1, "nonnegative")},
    nc.Constant(0.1): T,
    nc.Constant(0.1).log: T,
    nc.Constant(0.1).values: {"steps": (3, "count from zero")},
    nc.Constant(0.1).log_values: {"steps": (3, "count from zero")},
    nc.StepDecay: {"lr": (0.1, "nonnegative"), "milestones": ((3,), "steps"), "factor": (0.1, "positive")},
    nc.StepDecay(0.1, (3,)): T,
    nc.StepDecay(0.1, (3,)).log: T,
    nc.StepDecay(0.1, (3,)).phases: {"steps": (3, "count")},
    nc.Cosine: {"lr": (0.1, "nonnegative"), "steps": (3, "count")},
    nc.Cosine(0.1, 3): T,
    nc.Cosine(0.1, 3).log: T,
    nc.Exponential: {"lr": (0.1, "positive"), "growth": (1.1, "positive")},
    nc.Exponential(0.1, 1.1): {"t": (3, "nonnegative", [], [10**6])},
    nc.Exponential(0.1, 1.1).log: T,
    nc.intrinsic_lr: {**RATES, "lr": (0.1, "nonnegative"), "weight_decay": (0.1, "nonnegative")},
    nc.effective_lr: {
        "lr": (0.1, "nonnegative"),
        "norm": (1.0, "positive"),
        "momentum": (0.5, "share"),
    },
    nc.equilibrium: {**RATES, **SIZE},
    partial(nc.equilibrium, 0.1, 0.01, **ADAMW): OF_ADAMW,
    partial(nc.time_to_equilibrium, 1.0, 0.1, 0.01, **ADAMW): OF_ADAMW,
    nc.rho: {
        **RATES,
        "norm_sq": (1.0, "positive"),
        "grad_sq": (1.0, "nonnegative"),
        "overlap": (0.1, "real"),
        "moved_sq": (None, "numbers or none"),
    },
    nc.relaxation: {
        **RATES,
        "t": (3.0, "real"),
        "lr_ratio": (0.1, "positive"),
        "weight_decay_ratio": (0.1, "nonnegative"),
        "optimizer": ("sgd", "optimizer name"),
        "ratio_lr": (None, "any"),
        "ratio_wd": (None, "any"),
    },
    nc.time_to_equilibrium: {
        "norm": (1.0, "positive"),
        **RATES,
        **SIZE,
        "tolerance": (0.1, "between 0 and 1"),
    },
    nc.NormMonitor: {
        "optimizer": (OPTIMIZER, "torch optimizer"),
        "model": (MODEL, "module or none"),
        "every": (1, "count"),
        "horizon": (10, "count"),
        "exp_lr": (None, "exp_lr or none", [], [EXP_LR]),
    },
    MONITOR.load_state_dict: {
        "state": (MONITOR.state_dict(), "state", [], [*strangers(MONITOR.state_dict())])
    },
    nc.ExpLR: {
        "optimizer": (TAGGED, "torch optimizer", [ADAM], [torch.optim.SGD(NET.parameters(), lr=0.1)]),
        "model": (NET, "module or none", [], [OTHER]),
        "loss_fn": (CROSS, "function or none"),
        "batch": (BATCH, "batch or none"),
        "rebase": (True, "flag"),
        "rule": (None, "choice or none"),
    },
    EXP_LR.scale: {"group": (0, "count from zero", [], [7])},
    EXP_LR.log_scale: {"group": (0, "count from zero", [], [7])},
    EXP_LR.log_lr: {"group": (0, "count from zero", [], [7])},
    EXP_LR.clip_grad_norm_: {
        "max_norm": (1.0, "any", ["x", None, 1j, True], [NAN, -1.0]),
        "norm_type": (2.0, "any", ["x", None, 1j, True], [NAN, 0.0, -1.0]),
    },
    EXP_LR.clip_grad_value_: {"clip_value": (1.0, "any", ["x", None, 1j, True], [NAN, -1.0])},
    EXP_LR.load_state_dict: {"state": (SAVED["exp_lr"], "state", [], STRANGE_GAUGES)},
    nc.convert_checkpoint: {
        "state": (SAVED, "state", [], STRANGE_SAVED),
        "to": ("weight_decay", "choice"),
    },
    nc.scale_invariance: {
        "model": (NET, "model"),
        "loss_fn": (CROSS, "loss"),
        "batch": (BATCH, "batch", [], [(BATCH[0] * NAN, BATCH[1])]),
        "groups": (
            None,
            "mapping or none",
            [],
            [{"a": 3}, {"a": "0.weight"}, {"a": [3]}, {"a": []}, {"a": ["w"]}],
        ),
        "forward": FORWARD,
        "seed": (0, "seed"),
    },
    nc.scaling_symmetries: {
        "model": (NET, "model"),
        "batch": (BATCH, "batch", [], [(BATCH[0] * NAN, BATCH[1])]),
        "forward": FORWARD,
        "seed": (0, "seed"),
    },
    nc.norm_input_degrees: {
        "model": (NET, "module"),
        "groups": (
            [[NET[0].weight]],
            "any",
            [None, 3, "ab", [3], NET[0].weight, [NET[0].weight], [["0.weight"]], [[None]]],
            [[[NET[0].weight] * 2], [[OTHER[0].weight]]],
        ),
        "inputs": ((BATCH[0],), "any", [None, 3, BATCH[0], "x"], []),
    },
    nc.param_groups: {
        "model": (NET, "model"),
        "report": (REPORT, "any", [None, 3, {}, "x"], [nc.scale_invariance(MODEL, LOSS, (X, Y))]),
        "no_decay": (False, "any", [None, 3, 1.5], [["norm"], "table", [3]]),
        "params": (..., "any", [], [[]]),
        "scale_invariant": (..., "any", [], [False]),
        "name": (..., "any", [], ["x"]),
    },
    nc.diagnose: {
        "model": (NET, "model"),
        "optimizer": (torch.optim.SGD(NET.parameters(), lr=0.1), "torch optimizer", [], [OPTIMIZER]),
        "batch": (BATCH, "batch"),
        "loss_fn": (CROSS, "loss"),
        "steps": (3, "count"),
        "scheduler": (None, "scheduler or none", [], [torch.optim.lr_scheduler.ConstantLR(OPTIMIZER)]),
        "scheduler_every": (1, "count"),
    },
    DIAGNOSIS.plan: {"ratio_batch": (2.0, "positive"), "ratio_epochs": (2.0, "positive")},
    nc.hessian_top_eigenvalue: {**CURVATURE, **LANCZOS, "start": (None, "vector or none")},
    nc.hessian_eigenvalues: {**CURVATURE, **LANCZOS, "k": (2, "count", [], [4])},
    nc.hessian_trace: {**CURVATURE, "matvecs": (3, "at least two")},
    nc.ntk_top_eigenvalue: {
        **CURVATURE,
        **LANCZOS,
        "x": (X, "any", [], [X[:0], X * NAN]),
        "start": (None, "vector or none"),
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
    SHARPNESS: {"model": (MODEL, "model")},
    SHARPNESS.load_state_dict: {
        "state": (
            {"vector": torch.ones(3), "readings": 2},
            "state",
            [],
            [
                *strangers({"vector": torch.ones(3), "readings": 2}),
                {"vector": torch.full((3,), NAN), "readings": 2},
            ],
        )
    },
    nc.lr_phases: {
        "curvature": (2.0, "positive", [], [nc.EigenResult(2.0, torch.ones(1), 1.0, 9, False)]),
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
        "vv": (1.0, "numbers"),
        "uu": (np.eye(2), "numbers"),
        "uv": (np.ones(2), "numbers"),
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
