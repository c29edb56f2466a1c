"""Probes of long runs against what they should read, and over a checkpoint."""

import math

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from normcore import lab
from normcore.experiments import probes
from normcore.norm_dynamics.monitor import NormMonitor


@pytest.fixture
def net():
    return lab.mlp((64, 8, 10), dtype=torch.float64)


def move(net, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in lab.trainable(net):
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))


def test_chunks_are_weighted_by_their_size(monkeypatch):
    monkeypatch.setattr(probes, "CHUNK", 4)
    x, y = torch.arange(10.0), torch.zeros(10)
    probe = probes.in_chunks(lambda a, b: lambda model: float(a.mean()), x, y)
    assert probe(None) == pytest.approx(4.5)


def test_the_angle_of_the_first_step_of_an_epoch(net):
    probe, expected = probes.FirstStepAngle(3), []
    assert math.isnan(probe(net))
    for t in range(6):
        before = lab.direction(net)
        probe.before_step(t, net)
        move(net, t)
        if t % 3 == 0:
            expected.append(math.acos(float(before @ lab.direction(net))))
        if t % 3 == 2:
            assert probe(net) == pytest.approx(expected[-1], rel=1e-9)
    assert expected[0] != expected[1]


def test_chords_are_measured_from_a_reading(net):
    probe, read, directions = probes.Chord(2), [], []
    for seed in range(5):
        read.append(probe(net))
        directions.append(lab.direction(net))
        move(net, seed)
    assert np.isnan(read[:2]).all() and read[2] == 0.0
    expected = [float((d - directions[2]).norm()) for d in directions[3:]]
    np.testing.assert_allclose(read[3:], expected, rtol=1e-12)
    other = probes.Chord(2)
    other.load_state_dict(probe.state_dict())
    assert other(net) == probe(net) > 0


def test_a_late_average_is_that_of_torch(net):
    data = lab.load_dataset("digits").subset(test=50)
    x, y = data.x_test.double(), data.y_test
    probe, average = probes.LateSWA(2, x, y), None
    for seed in range(5):
        now = probe(net)
        if seed < 2:
            assert math.isnan(now)
        else:
            average = average or AveragedModel(net)
            average.update_parameters(net)
            assert now == lab.accuracy_on(x, y)(average)
        move(net, seed)
    other = probes.LateSWA(2, x, y)
    other.load_state_dict(probe.state_dict())
    average.update_parameters(net)
    assert other(net) == lab.accuracy_on(x, y)(average)
    assert other.count == 6


def test_readings_of_the_monitor(net):
    optimizer = torch.optim.SGD(lab.trainable(net), lr=0.1, weight_decay=0.1)
    probe = probes.MonitorReading(NormMonitor(optimizer))
    assert probe(net).isnan().all() and len(probe(net)) == 3
    for p in lab.trainable(net):
        p.grad = torch.ones_like(p)
    before = lab.direction(net)
    optimizer.step()
    rho, angle, square = probe(net).tolist()
    assert angle == pytest.approx(math.acos(float(before @ lab.direction(net))), rel=1e-5)
    assert rho > 0 and square > 0
    assert "steps" in probe.state_dict()
