"""The laboratory: small nets, real data, one training loop, and pairs of runs to compare."""

from normcore.lab.data.dataset import Dataset, load_dataset, noisy_labels
from normcore.lab.measure import (
    fifths_left_out,
    forgetting_time,
    gaps,
    judge_null,
    judged_right,
    law_distance,
    law_ratio,
    max_gap,
    mean_and_error,
    relative_gap,
    roundings,
    slope,
)
from normcore.lab.nets.layers import cnn, cnn1d, mlp
from normcore.lab.nets.recipe import ScaleFreeReport, make_scale_invariant
from normcore.lab.nets.residual import preresnet, resnet, transformer
from normcore.lab.sde import SDERun, brownian_path, simulate_sde
from normcore.lab.stacks.descend import Descent, descend, half_mse, softmax_loss, stack_loss_on
from normcore.lab.stacks.side_by_side import run_side_by_side
from normcore.lab.stacks.stack import (
    Stack,
    stack_accuracy_on,
    stack_norms,
    stack_predictions,
    stack_weights,
    top_eigenpair,
    wide_curvature,
    wide_kernel,
)
from normcore.lab.toys import ToyRun, ValleyRun, escape_steps, spikes, theorem_3_1_bound, toy, valley
from normcore.lab.training.checkpoint import load_checkpoint, save_checkpoint
from normcore.lab.training.loop import rounding_twin, run, train
from normcore.lab.training.probes import (
    SWA,
    Angle,
    History,
    accuracy_on,
    direction,
    logits,
    logits_on,
    loss_on,
    trainable,
    weight_norm,
    weight_vector,
)
from normcore.lab.training.sweep import CellResult, Sweep, grid, sweep

__all__ = [
    # data
    "Dataset",
    "load_dataset",
    "noisy_labels",
    # nets
    "ScaleFreeReport",
    "cnn",
    "cnn1d",
    "make_scale_invariant",
    "mlp",
    "preresnet",
    "resnet",
    "transformer",
    # training, and pairs of runs
    "History",
    "load_checkpoint",
    "rounding_twin",
    "run",
    "save_checkpoint",
    "train",
    # sweeps
    "CellResult",
    "Sweep",
    "grid",
    "sweep",
    # what a probe reads
    "Angle",
    "SWA",
    "accuracy_on",
    "direction",
    "logits",
    "logits_on",
    "loss_on",
    "trainable",
    "weight_norm",
    "weight_vector",
    # rulers
    "gaps",
    "max_gap",
    "mean_and_error",
    "relative_gap",
    "roundings",
    "slope",
    # laws of what nets answer
    "fifths_left_out",
    "forgetting_time",
    "judge_null",
    "judged_right",
    "law_distance",
    "law_ratio",
    # many nets side by side
    "Descent",
    "Stack",
    "descend",
    "half_mse",
    "run_side_by_side",
    "softmax_loss",
    "stack_accuracy_on",
    "stack_loss_on",
    "stack_norms",
    "stack_predictions",
    "stack_weights",
    "top_eigenpair",
    "wide_curvature",
    "wide_kernel",
    # the toys
    "ToyRun",
    "ValleyRun",
    "escape_steps",
    "spikes",
    "theorem_3_1_bound",
    "toy",
    "valley",
    # the stochastic differential equation
    "SDERun",
    "brownian_path",
    "simulate_sde",
]
