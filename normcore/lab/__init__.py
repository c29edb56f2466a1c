"""The laboratory: small nets, real data, one training loop, and pairs of runs to compare."""

from normcore.lab.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from normcore.lab.data import Dataset, load_dataset
from normcore.lab.descend import Descent, descend, half_mse, softmax_loss
from normcore.lab.escape import escape_steps, theorem_3_1_bound
from normcore.lab.experiment import Training
from normcore.lab.history import History
from normcore.lab.label_noise import noisy_labels
from normcore.lab.measure import gaps, max_gap, relative_gap, roundings, slope
from normcore.lab.nets import cnn, cnn1d, mlp, two_layer
from normcore.lab.probes import (
    SWA,
    Angle,
    accuracy_on,
    direction,
    effective_lr_of,
    logits,
    logits_on,
    loss_on,
    trainable,
    weight_norm,
    weight_vector,
)
from normcore.lab.resnets import preresnet, resnet
from normcore.lab.results import CellResult
from normcore.lab.scale_free import ScaleFreeReport, make_scale_invariant
from normcore.lab.sde import SDERun, brownian_path, simulate_sde
from normcore.lab.stack import (
    Stack,
    stack_accuracy_on,
    stack_loss_on,
    stack_norms,
    stack_predictions,
    stack_weights,
)
from normcore.lab.sweep import Sweep, grid, sweep
from normcore.lab.toy import ToyRun, toy
from normcore.lab.train import train
from normcore.lab.train_stack import train_stack
from normcore.lab.twins import rounding_twin, run
from normcore.lab.valley import ValleyRun, spikes, valley
from normcore.lab.wide import WideStack, top_eigenpair, wide_curvature, wide_kernel

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
    "two_layer",
    # training, and pairs of runs
    "History",
    "rounding_twin",
    "run",
    "train",
    "load_checkpoint",
    "newest_checkpoint",
    "save_checkpoint",
    # sweeps
    "CellResult",
    "Sweep",
    "Training",
    "grid",
    "sweep",
    # what a probe reads
    "Angle",
    "SWA",
    "accuracy_on",
    "direction",
    "effective_lr_of",
    "logits",
    "logits_on",
    "loss_on",
    "trainable",
    "weight_norm",
    "weight_vector",
    # rulers
    "gaps",
    "max_gap",
    "relative_gap",
    "roundings",
    "slope",
    # many nets side by side
    "Stack",
    "stack_accuracy_on",
    "stack_loss_on",
    "stack_norms",
    "stack_predictions",
    "stack_weights",
    "train_stack",
    # wide nets past the edge
    "Descent",
    "WideStack",
    "descend",
    "half_mse",
    "softmax_loss",
    "top_eigenpair",
    "wide_curvature",
    "wide_kernel",
    # the toys
    "ValleyRun",
    "spikes",
    "valley",
    "ToyRun",
    "escape_steps",
    "theorem_3_1_bound",
    "toy",
    # the stochastic differential equation
    "SDERun",
    "brownian_path",
    "simulate_sde",
]
