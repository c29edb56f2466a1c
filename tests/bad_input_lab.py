"""The table of bad input: the laboratory, and what a chapter calls of the book's tools."""

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
from bad_input import INF, NAN
from torch import nn

import normcore as nc
from normcore import bookkit, lab
from normcore.bookkit import draw, plots
from normcore.experiments import stored
from normcore.lab.training import processes

torch.manual_seed(0)
NET = lab.mlp((4, 6, 3), norm="batch", dtype=torch.float64)
X, Y = torch.randn(8, 4).double(), torch.arange(8) % 3
CROSS = nn.functional.cross_entropy
ITEMS = [(X, Y)] * 3
DIGITS = lab.load_dataset("digits").subset(train=30, test=20)
STACK = lab.Stack((4, 6, 3), seeds=[0, 1], dtype=torch.float64)
ONE = lab.Stack((4, 6, 1), seeds=[0], parametrization="ntk", dtype=torch.float64)
PAIR, IMAGES = [lab.cnn((6,), seed=seed) for seed in range(2)], DIGITS.batches(1, 8)[0]
SGD = torch.optim.SGD(NET.parameters(), lr=0.1)
FOREIGN = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
TOY = lab.toy(0.1, 0.02, norm="sphere", steps=5, runs=2)
ANGLE, SWA = lab.Angle(), lab.SWA(X, Y)
ANGLE(NET), SWA(NET)
FILE = tempfile.mkdtemp() + "/run.pt"
RECORD = [[1.0, 2.0], [3.0, 4.0]]
FOLLOWED = (NET, "model", [], [lab.mlp((4, 5, 3), dtype=torch.float64)])

WRONG_X = [X[0], X[:, :3], torch.zeros(())]
SHAPES = {
    "norm": ("batch", "choice"),
    "activation": ("relu", "choice"),
    "head": ("trained", "choice"),
    "affine": (False, "flag"),
    "eps": (0.1, "nonnegative or none"),
    "seed": (0, "seed"),
    "dtype": (torch.float32, "dtype", [], [torch.float16]),
}
CONV = {**SHAPES, "kernel": (3, "count", [], [2]), "classes": (10, "count"), "in_channels": (1, "count")}
RESIDUAL = {name: entry for name, entry in CONV.items() if name not in ("kernel", "activation")} | {
    "depth": (8, "count", [], [2, 9]),
    "width": (4, "count"),
    "norm_shortcut": (True, "flag"),
}
STEPS = {
    "lr": (0.1, "nonnegative", [], [[0.1] * 4]),
    "weight_decay": (0.01, "nonnegative", [], [[0.1] * 4]),
}
LABELS = np.tile(np.arange(20) % 3, (2, 1))[:, :, None]
NO_LABELS = [1.0, LABELS[:, :18], LABELS + 0.5, LABELS - 1, LABELS + 10]
POINTS = np.arange(24.0).reshape(2, 2, 3, 2)
NO_POINTS = [1.0, POINTS[:, :1], POINTS[:, :, :1], POINTS * NAN]
RECORDS = {"a": (RECORD, "record"), "b": ([[1.0, 2.5], [3.0, 4.5]], "record")}
ON = {"x": (X, "tensor"), "y": (Y, "tensor", [], [Y[:3]])}
WITH_STACK = (STACK, "any", [None, 3, "x", NET], [])
STACK_ON = {"stack": WITH_STACK, **ON}
PROBES = (None, "mapping or none", [{"a": 3}, {"a": None}])


def own_axes():
    return plt.figure().add_subplot()


AXES = own_axes()
PLOT = {"ax": (AXES, "any", [None, 3, "x"], []), "x": ([1.0, 2.0], "any"), "y": ([1.0, 2.0], "any")}
PANEL = {"ax": (AXES, "any", [3, "x"], [])}

LAB = {
    lab.load_dataset: {
        "name": ("digits", "choice"),
        "root": (None, "path or none"),
        "download": (False, "flag"),
        "dtype": (torch.float32, "dtype"),
        "device": ("cpu", "device"),
        "image_size": (None, "count or none", [], [8]),
    },
    DIGITS.standardise: {"pixels": (DIGITS.pixels_test, "tensor")},
    DIGITS.subset: {
        "train": (3, "count or none", [], [31]),
        "test": (3, "count or none", [], [21]),
        "seed": (0, "seed"),
    },
    DIGITS.batches: {
        "steps": (3, "count"),
        "batch_size": (4, "count"),
        "seed": (0, "seed"),
        "replacement": (True, "flag"),
        "crop": (0, "count from zero"),
        "flip": (False, "flag"),
    },
    lab.noisy_labels: {
        "y": (Y, "tensor", [], [Y.double(), Y[None]]),
        "fraction": (0.2, "from 0 to 1", [], [[0.1, 0.2]]),
        "classes": (10, "count"),
        "seed": (0, "seed"),
    },
    lab.mlp: {**SHAPES, "sizes": ((4, 6, 3), "sizes"), "norm": ("layer", "choice", [], ["instance"])},
    lab.cnn: {
        **CONV,
        "channels": ((4, 8), "widths"),
        "strides": ((1, 2), "widths or none", [], [(1,), (1, 1, 1)]),
    },
    lab.cnn1d: {**CONV, "channels": ((4, 8), "widths"), "strides": ((1, 2), "widths or none")},
    lab.preresnet: RESIDUAL,
    lab.resnet: RESIDUAL,
    lab.transformer: {
        "dim": (8, "count", [], [7]),
        "blocks": (1, "count"),
        "heads": (2, "count", [], [3]),
        "qk_norm": (True, "flag"),
        "pixels": (4, "count"),
        "classes": (3, "count"),
        "seed": (0, "seed"),
    },
    lab.make_scale_invariant: {
        "model": (NET, "model"),
        "inputs": (X, "tensor"),
        "seed": (0, "seed"),
    },
    lab.train: {
        "model": (NET, "module"),
        "optimizer": (SGD, "torch optimizer"),
        "batches": (ITEMS, "any", [None, 3, [1], [None], [X]]),
        "loss_fn": (CROSS, "function"),
        "schedule": (None, "mapping or none", [], [nc.texp_plus_plus(0.1, 0.1, steps=2)]),
        "before_step": (None, "function or none"),
        "scheduler": (None, "scheduler or none"),
        "exp_lr": (None, "exp_lr or none"),
        "probes": PROBES,
        "every": (1, "count"),
        "autocast": (None, "any", ["float16", 3], [torch.int64]),
        "channels_last": (False, "flag"),
        "compile": (False, "any", [None, 3, 1.5], ["nothing such"]),
        "checkpoint": (None, "path or none"),
        "checkpoint_every": (5, "count"),
        "progress": (None, "any", ["no", 1, 0.0], []),
    },
    lab.run: {
        "net": (NET, "any", [None, "net", []], []),
        "batches": (ITEMS, "batches"),
        "lr": (0.1, "nonnegative", [], [[0.1]]),
        "weight_decay": (0.0, "real", [], [[0.1]]),
        "momentum": (0.5, "share", [], [[0.1]]),
        "nesterov": (False, "flag"),
        "dampening": (0.0, "share"),
        "schedule": (None, "mapping or none"),
        "probes": PROBES,
        "every": (1, "count"),
        "loss_fn": (CROSS, "function"),
    },
    lab.rounding_twin: {"net": (NET, "module"), "seed": (0, "seed")},
    lab.load_checkpoint: {"path": (..., "path", [], [__file__])},
    lab.save_checkpoint: {"path": (FILE, "path"), "state": ({"step": 3}, "any", [None, 3, "x", [1]])},
    lab.grid: {"lr": ([0.1], "any", [None, 3, "ab", 0.1], [])},
    lab.sweep: {
        "experiment": (dict, "function"),
        "cells": ([{"lr": 0.1}], "any", [None, 3, "ab", {"lr": 0.1}, [3], [None]], []),
        "folder": (None, "path or none"),
        "workers": (None, "any", ["2", 1.5, True, NAN], [0]),
        "progress": (None, "any", ["no", 1, 0.0], []),
    },
    ANGLE: {"model": FOLLOWED},
    ANGLE.load_state_dict: {"state": (ANGLE.state_dict(), "state", [], [{"before": 3}, {"before": "x"}])},
    lab.SWA: {**ON, "first": (0, "count from zero"), "chunk": (None, "count or none")},
    SWA: {"model": FOLLOWED},
    SWA.load_state_dict: {
        "state": (SWA.state_dict(), "state", [], [{"readings": 3}, {**SWA.state_dict(), "readings": "x"}])
    },
    lab.accuracy_on: {**ON, "chunk": (None, "count or none")},
    lab.loss_on: {**ON, "loss_fn": (CROSS, "function"), "chunk": (None, "count or none")},
    lab.direction: {"model": (NET, "model")},
    lab.trainable: {"model": (NET, "model")},
    lab.weight_norm: {"model": (NET, "model")},
    lab.weight_vector: {"model": (NET, "model")},
    lab.logits: {"model": (NET, "module"), "x": (X, "tensor")},
    lab.logits_on: {"x": (X, "tensor")},
    lab.gaps: RECORDS,
    lab.max_gap: RECORDS,
    lab.relative_gap: {**RECORDS, "a": (RECORD, "record", [], [[[0.0, 0.0], [1.0, 1.0]]])},
    lab.roundings: {**RECORDS, "twin": ([[1.0, 2.1], [3.0, 4.1]], "record", [], [RECORD])},
    lab.slope: {
        "x": ([1.0, 2.0, 3.0], "record", [], [[1.0, 2.0, 0.0], [1.0, NAN, 2.0], [1.0, 1.0, 1.0]]),
        "y": ([1.0, 2.0, 3.0], "record", [], [[1.0, 2.0, -1.0], [1.0, INF, 2.0]]),
    },
    lab.mean_and_error: {"values": ([1.0, 2.0], "numbers", [], [[1.0], [1.0, NAN], []])},
    lab.law_distance: {"labels": (LABELS, "numbers", [], NO_LABELS), "classes": (10, "count")},
    lab.law_ratio: {"labels": (LABELS, "numbers", [], NO_LABELS), "classes": (10, "count")},
    lab.fifths_left_out: {
        "labels": (LABELS, "numbers", [], [1.0, LABELS[:, :8], LABELS + 0.5]),
        "classes": (10, "count"),
    },
    lab.forgetting_time: {
        "clock": ([0.0, 1.0, 2.0], "numbers", [], [[0.0, 1.0], [0.0, NAN, 2.0]]),
        "distance": ([1.1, 0.3, 0.1], "numbers", [], [[1.1, 0.3], [0.0, 0.3, 0.1], [NAN, 0.3, 0.1]]),
        "floor": ([0.1, 0.1, 0.1], "numbers", [], [[0.1], [2.0, 0.1, 0.1]]),
    },
    lab.judged_right: {"points": (POINTS, "numbers", [], NO_POINTS)},
    lab.judge_null: {
        "points": (POINTS, "numbers", [], NO_POINTS),
        "draws": (3, "count"),
        "seed": (0, "count from zero"),
    },
    lab.Stack: {
        "sizes": ((4, 6, 3), "sizes"),
        "seeds": ([0, 1], "seeds"),
        "parametrization": ("standard", "choice"),
        "norm": (None, "choice or none"),
        "activation": (None, "choice or none"),
        "head_scale": (1.0, "real"),
        "shared_head": (False, "flag"),
        "antisymmetric": (False, "flag"),
        "dtype": (torch.float32, "dtype", [], [torch.float16]),
    },
    STACK.forward: {
        "x": (X, "floats", [], [*WRONG_X, X[None], X[None].expand(3, -1, -1), X.float(), X[:0]]),
        "own": (None, "any", ["yes", 3]),
    },
    STACK.layers: {"x": (X, "floats", [], WRONG_X), "own": (None, "any", ["yes", 3])},
    ONE.forward: {"x": (X, "floats", [], [*WRONG_X, torch.zeros(1, 4).double()[0], X[:, :2]])},
    STACK.take: {"runs": ([0, 0], "any", [None, 3, "ab", [0.5], [None]], [[2], [-3], []])},
    STACK.with_weights: {
        "vectors": (
            lab.stack_weights(STACK),
            "tensor",
            [],
            [torch.zeros(2, 3)],
        )
    },
    STACK.scale_: {"factor": (1.0, "real", [], [[1.0, 1.0, 1.0], torch.ones(2, 2)])},
    lab.descend: {
        "stack": WITH_STACK,
        "data": (
            (X, Y),
            "any",
            [None, 3, X, (X, Y, Y), (X, None)],
            [(X, Y[:5])],
        ),
        **STEPS,
        "steps": (3, "count"),
        "loss_fn": (None, "function or none"),
        "batch_size": (4, "count or none"),
        "replacement": (True, "flag"),
        "seeds": ([0, 1], "any", ["ab", 1.5, (1.5, 2), (None, 1)], [(0,), (0, 2**64)]),
        "probes": (*PROBES, [{"a": lambda stack: torch.zeros(3)}]),
        "every": (1, "count"),
    },
    lab.half_mse: {
        "output": (torch.zeros(2, 3, 1), "tensor", [], [torch.zeros(3, 1)]),
        "y": (torch.ones(3, 1), "tensor", [], [torch.ones(3)]),
    },
    lab.run_side_by_side: {
        "nets": (PAIR, "any", [None, 3, PAIR[0], [NET, 3]], [[], [PAIR[0], lab.cnn((4,))]]),
        "batches": (
            [[IMAGES]] * 2,
            "any",
            [None, 3, [None, None], [[3], [3]]],
            [[[IMAGES]], [[IMAGES], [IMAGES] * 2], [[(X, Y)]] * 2],
        ),
        "lr": STEPS["lr"],
    },
    lab.softmax_loss: {
        "output": (torch.zeros(2, 8, 3), "tensor", [], [torch.zeros(8, 3)]),
        "y": (Y, "tensor", [], [Y[:3], Y + 1]),
    },
    lab.stack_accuracy_on: ON,
    lab.stack_loss_on: {**ON, "loss_fn": (None, "function or none")},
    lab.stack_norms: {"stack": WITH_STACK},
    lab.stack_weights: {"stack": WITH_STACK},
    lab.stack_predictions: {"stack": WITH_STACK, "x": (X, "floats", [], WRONG_X)},
    lab.top_eigenpair: {
        "kernel": (
            torch.eye(3)[None],
            "tensor",
            [],
            [torch.eye(3), torch.ones(1, 2, 3)],
        ),
        "iterations": (9, "count"),
    },
    lab.wide_kernel: {"nets": (ONE, "any", [None, 3, NET], []), "x": (X, "floats", [], WRONG_X)},
    lab.wide_curvature: {
        "nets": (ONE, "any", [None, 3, NET], []),
        "x": (X, "floats", [], WRONG_X),
        "iterations": (9, "count"),
    },
    lab.toy: {
        "lr": (0.1, "positive", [], [[0.1, 0.1]]),
        "weight_decay": (0.02, "nonnegative", [], [10.0, [0.1, 0.1]]),
        "norm": ("sphere", "choice"),
        "steps": (5, "count"),
        "dim": (5, "count from three"),
        "batch_size": (5, "count from three"),
        "runs": (2, "count"),
        "start_norm": (None, "positive or none", [], [[1.0, 1.0, 1.0]]),
        "seed": (0, "count from zero"),
    },
    lab.escape_steps: {
        "run": (TOY, "any", [None, 3, RECORD], []),
        "epsilon": (0.1, "positive"),
    },
    lab.theorem_3_1_bound: {
        "lr": (0.1, "positive"),
        "weight_decay": (0.02, "positive"),
        "epsilon": (0.01, "positive", [], [1.0]),
        "norm": (1.0, "positive"),
        "dim": (100, "above 2"),
        "batch_size": (100, "positive"),
        "delta": (0.1, "above 0 to 1"),
    },
    lab.valley: {
        "lr": (0.1, "positive", [], [[0.1, 0.1]]),
        "weight_decay": (0.02, "nonnegative", [], [10.0, [0.1, 0.1]]),
        "steps": (5, "count"),
        "start": (
            (0.1, 1.0),
            "any",
            [None, "ab", ("a", "b"), (None, 1.0)],
            [3, (0.1,), (0.1, 1.0, 1.0), (NAN, 1.0), (0.0, 0.0)],
        ),
    },
    lab.spikes: {
        "loss": (np.ones(3), "numbers", [], [np.ones((2, 2)), 1.0]),
        "rise": (2.0, "above 1"),
    },
    lab.simulate_sde: {
        "start": (
            torch.ones(2, 3).double(),
            "floats",
            [],
            [torch.zeros(2, 3), torch.ones(2, 1), torch.full((2, 3), NAN)],
        ),
        "loss": (None, "function or none", [], [lambda w: w.sum(), lambda w: w.sum(dim=1)]),
        "noise": (1.0, "real", [], [torch.ones(2, 2)]),
        "lr": (0.1, "positive", [], [[0.1, 0.1], lambda t: NAN, lambda t: 0.0]),
        "weight_decay": (0.1, "nonnegative", [], [[0.1, 0.1], lambda t: NAN]),
        "steps": (4, "count", [], [5]),
        "form": ("direction", "choice"),
        "dt": (1.0, "above 0 to 1", [], [0.3]),
        "every": (2, "count", [], [3]),
        "path": (None, "function or none"),
        "seed": (0, "count from zero"),
    },
    lab.brownian_path: {
        "steps": (4, "count"),
        "shape": ((1, 2), "any", [None, 3, "ab", (1.5, 2)], [(1,), (0, 2), (1, -2)]),
        "seed": (0, "count from zero"),
        "dtype": (torch.float64, "dtype"),
        "device": ("cpu", "device"),
    },
    processes.wrap: {"model": (NET, "module"), "device": (None, "device or none")},
    processes.mean_over_ranks: {"tensor": (X, "tensor", [Y], [])},
    bookkit.claim: {
        "id": ("E1/bad-input", "any", [None, 3], ["E1", "E1/Upper", "Q99/x"]),
        "value": (1.0, "any", [None, "x", 1j, [1.0, 2.0]], []),
        "relation": ("<", "choice"),
        "bound": (2.0, "any", [None, "x", 1j], [(0, 1), NAN]),
        "source": ("a test", "text", [], ["", "a\nb"]),
        "restriction": ("", "text", [], ["a\nb"]),
        "guards": ("", "text", [], ["E1"]),
        "n": (None, "count or none"),
        "se": (None, "any", ["x", 1j]),
        "exact": (False, "flag"),
        "expect": ("held", "choice"),
    },
    plots.curve: {
        **PLOT,
        "kind": ("decay", "choice"),
        "label": ("a", "any"),
        "at": (-1, "any"),
        "offset": ((4, 0), "any"),
    },
    plots.band: {
        "ax": PLOT["ax"],
        "x": ([1.0, 2.0], "any"),
        "low": ([1.0, 2.0], "any"),
        "high": ([1.0, 2.0], "any"),
        "kind": ("decay", "choice"),
    },
    plots.axes_labels: {"ax": PLOT["ax"], "x": ("x", "any"), "y": ("y", "any"), "title": ("t", "any")},
    plots.decades: {"ax": PLOT["ax"], "axis": ("y", "choice"), "most": (6, "count")},
    draw.two_runs: PANEL,
    draw.plane: {**PANEL, "steps": (391, "count")},
    draw.phase_boundary: PANEL,
    stored.load: {"path": (..., "path")},
}
