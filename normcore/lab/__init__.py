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

# data
__all__ = ["Dataset", "load_dataset", "noisy_labels"]
# nets
__all__ += ["ScaleFreeReport", "cnn", "cnn1d", "make_scale_invariant", "mlp", "preresnet", "resnet"]
__all__ += ["transformer"]
# training, and pairs of runs
__all__ += ["History", "rounding_twin", "run", "train", "load_checkpoint", "save_checkpoint"]
# sweeps
__all__ += ["CellResult", "Sweep", "grid", "sweep"]
# what a probe reads
__all__ += ["Angle", "SWA", "accuracy_on", "direction", "logits", "logits_on", "loss_on", "trainable"]
__all__ += ["weight_norm", "weight_vector"]
# rulers
__all__ += ["gaps", "max_gap", "mean_and_error", "relative_gap", "roundings", "slope"]
# laws of what nets answer
__all__ += ["fifths_left_out", "forgetting_time", "judge_null", "judged_right", "law_distance", "law_ratio"]
# many nets side by side
__all__ += ["Descent", "Stack", "descend", "half_mse", "softmax_loss", "stack_accuracy_on", "stack_loss_on"]
__all__ += ["run_side_by_side"]
__all__ += ["stack_norms", "stack_predictions", "stack_weights", "top_eigenpair", "wide_curvature"]
__all__ += ["wide_kernel"]
# the toys
__all__ += ["ValleyRun", "spikes", "valley", "ToyRun", "escape_steps", "theorem_3_1_bound", "toy"]
# the stochastic differential equation
__all__ += ["SDERun", "brownian_path", "simulate_sde"]
