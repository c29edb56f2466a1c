"""What is read off a model."""

import math

import torch

from normcore.lab import cnn, direction, logits, logits_on, mlp, weight_norm, weight_vector


def test_vectors_hold_the_trained_weights_only():
    net = mlp((64, 16, 10), dtype=torch.float64)
    vector = weight_vector(net)
    assert vector.shape == (64 * 16,)
    assert weight_vector(mlp((64, 16, 10), head="trained")).shape == (64 * 16 + 160,)
    size = math.sqrt(sum(float(v) ** 2 for v in vector))
    assert abs(weight_norm(net) / size - 1) < 1e-12
    assert float((direction(net) * size - vector).abs().max()) < 1e-12
    vector.zero_()
    assert weight_norm(net) > 0  # a copy


def test_logits_leave_running_statistics_and_mode_alone():
    net, x = cnn(dtype=torch.float64), torch.randn(8, 1, 8, 8, dtype=torch.float64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train_mode = logits(net, x)
    assert not train_mode.requires_grad and net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(train_mode, logits_on(x)(net)) and torch.equal(train_mode, net(x).detach())
    assert not torch.equal(before["1.running_mean"], net.state_dict()["1.running_mean"])  # control
    assert not torch.allclose(train_mode, logits(net.eval(), x))
