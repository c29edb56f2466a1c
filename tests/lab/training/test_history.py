"""The recorder, across an interruption and a divergence."""

import math

import numpy as np
import pytest
import torch
from helpers import Far

from normcore.lab import mlp, weight_norm
from normcore.lab.training.probes import Angle, Recorder


def recorder_of(net):
    return Recorder(net, {"norm": weight_norm, "angle": Angle()})


def fill(recorder, steps):
    """Readings and losses at these steps, with weights that turn."""
    for t in steps:
        recorder.read(t)
        recorder.read(t)  # not doubled
        recorder.note(torch.tensor(0.5 * t))
        with torch.no_grad():
            recorder.model[1].weight[0].add_(0.1)
    return recorder


def test_a_restored_recorder_goes_on_as_if_nothing_had_happened():
    net, twin = (mlp((64, 16, 10), dtype=torch.float64) for _ in range(2))
    first, second = fill(recorder_of(twin), range(3)), recorder_of(twin)
    second.load_state_dict(first.state_dict())
    runs = fill(recorder_of(net), range(6)), fill(second, range(3, 6))
    for recorder in runs:
        recorder.read(6)
    whole, history = (recorder.history(6, 1) for recorder in runs)
    assert history.step.tolist() == whole.step.tolist() == list(range(7))
    for name in ("norm", "angle"):
        np.testing.assert_array_equal(history[name], whole[name])
    assert math.isnan(history["angle"][0]) and (history["angle"][1:] > 0).all()
    assert history.loss.tolist() == whole.loss.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    forgetful = Recorder(twin, {"angle": Angle()})  # control: without the probe's own state
    forgetful.read(0)
    assert math.isnan(forgetful.history(0, 1)["angle"][0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 2])
def test_everything_is_nan_from_the_first_loss_that_is_not_finite(bad, at):
    recorder = recorder_of(mlp((64, 16, 10)))
    for t in range(at + 1):
        recorder.read(t)
        assert recorder.note(torch.tensor(bad if t == at else 1.0)) is (t == at)
    history = recorder.history(5, 2)
    assert history.diverged_at == at and history.step.tolist() == [0, 2, 4, 5]
    np.testing.assert_array_equal(history.loss, [1.0] * at + [np.nan] * (5 - at))
    assert np.isnan(history["norm"]).tolist() == [at == 0, True, True, True]


def test_losses_on_a_device_are_not_read_before_somebody_asks():
    recorder = recorder_of(mlp((64, 16, 10)))
    loss = torch.empty((), device="meta")
    assert not any(recorder.note(loss) for _ in range(999))
    assert recorder.losses == [] and len(recorder.waiting) == 999
    with pytest.raises(NotImplementedError, match="meta tensor"):  # the thousandth; it has no number
        recorder.note(loss)


def test_a_loss_that_is_overwritten_keeps_its_value():
    recorder, loss = recorder_of(mlp((64, 16, 10))), torch.tensor(1.0)
    for value in (3.0, 1.0, 2.0):
        loss.fill_(value)
        recorder.note(loss.as_subclass(Far))
    assert recorder.losses == [] and not recorder.diverged() and recorder.losses == [3.0, 1.0, 2.0]


def test_unknown_probe():
    with pytest.raises(KeyError, match="no probe named 'nrm'"):
        fill(recorder_of(mlp((64, 16, 10))), range(1)).history(1, 1)["nrm"]
