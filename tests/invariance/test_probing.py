"""Evaluations that leave no trace."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from normcore.invariance.probing import Evaluator, flat_output, stand_ins, tensors_in, untouched


def test_untouched_restores_after_an_exception():
    model = nn.BatchNorm1d(2)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), untouched(model, train=True):
        model(torch.randn(8, 2))
        model.weight.data.fill_(7.0)
        model.eval()
        raise RuntimeError("stop")
    assert model.training and all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


def test_flat_output_gathers_floats_of_any_nesting():
    output = {"a": torch.ones(2), "b": (torch.zeros(1), torch.tensor([1])), "c": None}
    assert flat_output(output).tolist() == [1.0, 1.0, 0.0] and flat_output({"c": None}).tolist() == []


def test_tensors_in_looks_into_no_string():
    assert tensors_in(["ab", {"x": torch.ones(1)}, 3]) == [torch.ones(1)]


def test_evaluator_repeats_its_random_draws_and_moves_back():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    evaluate = Evaluator(model, torch.ones(4, 3), seed=0)
    base = evaluate()
    assert torch.equal(base, evaluate())
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    assert evaluate.distance(zeros, 0 * base) == 0.0 < evaluate.distance({}, 0 * base)
    assert torch.equal(base, evaluate())


def test_values_nearby_are_of_natural_size():
    values = {"w": torch.ones(3, 4), "zero": torch.zeros(5, 4), "tiny": torch.full((1, 9), 1e-6)}
    values |= {"gain": torch.ones(2), "shift": torch.full((6,), 1e-3), "small": torch.full((2, 8), 0.02)}
    model, before = nn.ParameterDict(values), torch.get_rng_state()
    first, second = Evaluator(model, None, 0).nearby(model, 1)

    def rms(t):
        return float(t.norm()) / t.numel() ** 0.5

    moves = {name: (first[name] - second[name]) / 2 for name in model}
    centres = {name: (first[name] + second[name]) / 2 for name in model}
    expected = {"w": 0.2, "zero": 0.5, "tiny": 1 / 3, "gain": 0.2, "shift": 0.5, "small": 0.2 / 8**0.5}
    assert {name: rms(move) for name, move in moves.items()} == pytest.approx(expected, rel=1e-5)
    expected = {"w": 1.0, "zero": 0.0, "tiny": 0.0, "gain": 1.0, "shift": 0.0, "small": 1 / 8**0.5}
    assert {name: rms(c) for name, c in centres.items()} == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert torch.equal(before, torch.get_rng_state())


class Counter(nn.Module):
    """Adds a buffer that it moves."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return self.layer(x) + self.count


def test_every_evaluation_starts_from_the_same_buffers():
    model = Counter()
    evaluate = Evaluator(model, torch.ones(1, 2), 0)
    base = evaluate()
    assert torch.equal(base, evaluate()) and float(model.count) == 0.0
    assert evaluate.rounding(base) < 1e-4


def test_stand_ins_leave_the_tensors_alone():
    model = nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 2), nn.BatchNorm1d(2)).half().eval()
    model[0].tied = model[0].weight
    own, versions = dict(model.named_parameters()), [p._version for p in model.parameters()]
    buffers = dict(model.named_buffers())
    with pytest.raises(RuntimeError, match="stop"), stand_ins(model, torch.float64):
        assert model.training and {p.dtype for p in model.parameters()} == {torch.float64}
        assert model[0].tied is model[0].weight and model[1]._flat_weights[0] is model[1].weight_ih_l0
        assert (
            model[2].running_var.dtype == torch.float64 and model[2].num_batches_tracked.dtype == torch.int64
        )
        with torch.no_grad():
            model[0].weight.zero_()
        raise RuntimeError("stop")
    assert not model.training and versions == [p._version for p in model.parameters()]
    assert all(p is own[name] for name, p in model.named_parameters())
    assert all(b is buffers[name] for name, b in model.named_buffers())
    assert model[1]._flat_weights[0] is own["1.weight_ih_l0"]


def test_a_reassigned_buffer_is_put_back():
    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(2))

        def forward(self, x):
            self.mean = self.mean + x.mean(0)
            return x

    model = Average()
    before = model.mean
    with untouched(model, train=True):
        model(torch.ones(4, 2))
        assert model.mean.tolist() == [1.0, 1.0]
    assert model.mean is before and before.tolist() == [0.0, 0.0]


def test_untouched_gives_all_generators_back():
    model = nn.Linear(2, 1)
    model.own = torch.Generator().manual_seed(1)

    def draw():
        own = torch.rand(1, generator=model.own)
        return random.random(), np.random.rand(), torch.rand(1).item(), own.item()

    with untouched(model):
        within = draw()
    assert draw() == within
    assert all(a != b for a, b in zip(draw(), within, strict=True))


def test_untouched_gives_gradients_back():
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.grad.clone()
    with untouched(model):
        model.weight.grad = None
        model(torch.full((1, 2), 7.0)).sum().backward()
    assert torch.equal(model.weight.grad, before)
