"""The laboratory: small nets, real data, one training loop, and pairs of runs to compare."""

from normcore.lab.data import Dataset, load_dataset
from normcore.lab.escape import escape_steps, theorem_3_1_bound
from normcore.lab.measure import gaps, max_gap, relative_gap, slope
from normcore.lab.nets import cnn, mlp
from normcore.lab.probes import (
    direction,
    logits,
    logits_on,
    trainable,
    weight_norm,
    weight_vector,
)
from normcore.lab.resnets import preresnet, resnet
from normcore.lab.toy import ToyRun, toy
from normcore.lab.train import History, train
from normcore.lab.twins import rounding_twin, run

__all__ = [
    # data
    "Dataset",
    "load_dataset",
    # nets
    "cnn",
    "mlp",
    "preresnet",
    "resnet",
    # training, and pairs of runs
    "History",
    "rounding_twin",
    "run",
    "train",
    # what a probe reads
    "direction",
    "logits",
    "logits_on",
    "trainable",
    "weight_norm",
    "weight_vector",
    # rulers
    "gaps",
    "max_gap",
    "relative_gap",
    "slope",
    # the toy
    "ToyRun",
    "escape_steps",
    "theorem_3_1_bound",
    "toy",
]
