"""Evaluations that leave no trace."""

import pytest
import torch
from torch import nn

from normcore.invariance.probing import Evaluator, flat_output, joint_norm, random_like, untouched


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
    assert flat_output(output).tolist() == [1.0, 1.0, 0.0]


def test_evaluator_repeats_its_random_draws_and_moves_back():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    evaluate = Evaluator(model, torch.ones(4, 3), seed=0)
    base = evaluate()
    assert torch.equal(base, evaluate())
    zeros = [torch.zeros_like(p) for p in model.parameters()]
    assert evaluate.at(list(model.parameters()), zeros).abs().max() == 0.0
    assert torch.equal(base, evaluate())


def test_random_like_has_the_norm_and_its_own_generator():
    before = torch.get_rng_state()
    draws = random_like([torch.ones(3), torch.ones(2, 2)], 5.0, seed=1)
    assert joint_norm(draws) == pytest.approx(5.0, rel=1e-6)
    assert torch.equal(before, torch.get_rng_state())


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


def test_untouched_gives_gradients_back():
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.grad.clone()
    with untouched(model):
        model.weight.grad = None
        model(torch.full((1, 2), 7.0)).sum().backward()
    assert torch.equal(model.weight.grad, before)
