"""What is read off a model."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from normcore.lab import (
    cnn,
    direction,
    load_dataset,
    logits,
    logits_on,
    mlp,
    weight_norm,
    weight_vector,
)
from normcore.lab.training.probes import SWA, Angle, accuracy_on, loss_on

DATA = load_dataset("digits", dtype=torch.float64)
X, Y = DATA.x_test[:50], DATA.y_test[:50]


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


def test_accuracy_and_loss_count_example_by_example():
    net = mlp((64, 16, 10), dtype=torch.float64)
    scores = [net(X[i : i + 1])[0].detach() for i in range(50)]
    right = sum(int(torch.argmax(s)) == int(label) for s, label in zip(scores, Y, strict=True))
    assert accuracy_on(X, Y)(net) == right / 50
    mean = sum(float(s.logsumexp(0) - s[label]) for s, label in zip(scores, Y, strict=True)) / 50
    assert loss_on(X, Y)(net) == pytest.approx(mean, rel=1e-12)
    assert loss_on(X, Y, lambda f, y: 2 * cross_entropy(f, y))(net) == pytest.approx(2 * mean, rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 50, 64])
def test_chunks_are_weighted_by_their_size_and_seen_apart(chunk):
    net, seen = mlp((64, 16, 10), dtype=torch.float64), []
    net.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    whole, parts = (loss_on(X, Y, chunk=size)(net) for size in (None, chunk))
    assert seen == [50] + [min(chunk, 50 - i) for i in range(0, 50, chunk)]
    assert parts == pytest.approx(whole, rel=1e-12)
    assert accuracy_on(X, Y, chunk=chunk)(net) == pytest.approx(accuracy_on(X, Y)(net), rel=1e-12)
    norms = cnn(dtype=torch.float64)  # in training mode BatchNorm sees the chunk alone
    assert chunk >= 50 or loss_on(X, Y, chunk=chunk)(norms) != pytest.approx(loss_on(X, Y)(norms), rel=1e-6)


def test_a_chunk_is_a_count():
    with pytest.raises(ValueError, match="chunk must be >= 1, got 0"):
        loss_on(X, Y, chunk=0)


@pytest.mark.parametrize("turn", [1e-9, 1e-3, 1.0, math.pi])
def test_the_angle_is_that_of_a_rotation(turn):
    net, angle = torch.nn.Linear(2, 1, bias=False).double(), Angle()
    net.weight.data = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert math.isnan(angle(net))
    net.weight.data = 5 * torch.tensor([[math.cos(turn), math.sin(turn)]], dtype=torch.float64)
    assert angle(net) == pytest.approx(turn, rel=1e-6)
    assert angle(net) == 0.0  # from there it has not moved


def test_a_memory_from_the_processor_goes_on_where_the_weights_are():
    """The numbers of a meta tensor cannot be read; two devices in one operation are refused before that."""
    net, angle = mlp((64, 16, 10)), Angle()
    angle(net)
    resumed = Angle()
    resumed.load_state_dict(angle.state_dict())
    there = mlp((64, 16, 10)).to("meta")
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        resumed(there)
    with pytest.raises(RuntimeError, match="not on the expected device"):  # control
        direction(there) - angle.before


def test_swa_begins_at_a_reading_and_remembers_which():
    net, late, plain = mlp((64, 16, 10), dtype=torch.float64), SWA(X, Y, first=2, chunk=20), SWA(X, Y)
    for seed in range(4):
        net[1].weight.data = mlp((64, 16, 10), seed=seed, dtype=torch.float64)[1].weight.data
        value = late(net)
        if seed < 2:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(plain(net), rel=1e-12)
        again = SWA(X, Y, first=2, chunk=20)
        again.load_state_dict(late.state_dict())
        late = again
    assert late.readings == 4 and int(late.state_dict()["weights"]["n_averaged"]) == 2


def test_swa_averages_all_weights_read():
    swa, seen = SWA(X, Y), []
    net = mlp((64, 16, 10), dtype=torch.float64)
    for seed in range(4):
        net[1].weight.data = mlp((64, 16, 10), seed=seed, dtype=torch.float64)[1].weight.data
        seen.append(net[1].weight.detach().clone())
        value = swa(net)
    mean = mlp((64, 16, 10), dtype=torch.float64)
    mean[1].weight.data = sum(seen) / 4
    average = swa.average.module[1].weight
    assert (average - mean[1].weight).abs().max().item() < 1e-15
    assert value == accuracy_on(X, Y)(mean)
    again = SWA(X, Y)
    again.load_state_dict(swa.state_dict())
    net[1].weight.data = seen[0]
    again(net)
    assert (again.average.module[1].weight - (sum(seen) + seen[0]) / 5).abs().max().item() < 1e-15
