"""The recorder, across an interruption."""

import math

import numpy as np
import pytest
import torch

from normcore.lab import mlp, weight_norm
from normcore.lab.training.history import Recorder
from normcore.lab.training.probes import Angle


def filled(net, steps):
    """A recorder after some readings."""
    recorder = Recorder(net, {"norm": weight_norm, "angle": Angle()})
    read(recorder, net, steps)
    return recorder


def read(recorder, net, steps):
    """Readings and losses at these steps, with weights that turn."""
    for t in steps:
        recorder.read(t)
        recorder.read(t)  # not doubled
        recorder.losses.append(0.5 * t)
        with torch.no_grad():
            net[1].weight[0].add_(0.1)


def test_a_restored_recorder_goes_on_as_if_nothing_had_happened():
    net = mlp((64, 16, 10), dtype=torch.float64)
    twin = mlp((64, 16, 10), dtype=torch.float64)
    whole = filled(net, range(6)).history(None)
    first = filled(twin, range(3))
    second = Recorder(twin, {"norm": weight_norm, "angle": Angle()})
    second.load_state_dict(first.state_dict())
    read(second, twin, range(3, 6))
    history = second.history(None)
    assert history.step.tolist() == whole.step.tolist() == list(range(6))
    for name in ("norm", "angle"):
        np.testing.assert_array_equal(history[name], whole[name])
    assert math.isnan(history["angle"][0]) and (history["angle"][1:] > 0).all()
    np.testing.assert_array_equal(history.loss, whole.loss)
    forgetful = Recorder(twin, {"angle": Angle()})  # control: without the probe's own state
    forgetful.read(6)
    assert math.isnan(forgetful.history(None)["angle"][0])


def test_unknown_probe():
    recorder = filled(mlp((64, 16, 10)), range(1))
    with pytest.raises(KeyError, match="no probe named 'nrm'"):
        recorder.history(None)["nrm"]
