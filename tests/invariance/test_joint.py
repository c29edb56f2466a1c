"""The search for joint invariances proposes the sets whose radial derivatives cancel."""

import torch
from torch import nn

from normcore.invariance.joint import candidate_groups
from normcore.invariance.probing import Evaluator


class Ratio(nn.Module):
    """(a + b) / (a + b + c) depends on all three, and not on their common scale; d stays outside."""

    def __init__(self):
        super().__init__()
        values = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.5, 2.5], [1.0, 1.0]], dtype=torch.float64)
        self.a, self.b, self.c, self.d = (nn.Parameter(row.clone()) for row in values)

    def forward(self, x):
        return x * (self.a + self.b * x) / (self.a + self.b + self.c * x**2) + self.d


def candidates(leave_out=()):
    model = Ratio()
    evaluate = Evaluator(
        model, torch.rand(10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), seed=0
    )
    return candidate_groups(
        evaluate, {name: p for name, p in model.named_parameters() if name not in leave_out}
    )


def test_finds_the_set():
    assert ["a", "b", "c"] in candidates()


def test_control_an_incomplete_set_is_not_proposed_with_its_outsider():
    assert ["a", "b", "c"] not in candidates(leave_out=("c",))
    assert candidates(leave_out=("a", "b", "c")) == []
