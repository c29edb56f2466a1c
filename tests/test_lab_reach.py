"""Which tensors arrive where past every norm, on nets small enough to see."""

import pytest
import torch
from torch import nn

from normcore.lab.reach import hooked, reach, tensors_in, trained_by_name

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """A main path with a norm, a way past it, a head, and a layer that is not used."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.past, self.head, self.unused = (nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, x):
        h = self.stem(x)
        return {"logits": self.head(self.norm(h)), "more": [self.past(h), torch.ones(2, dtype=torch.long)]}


def test_branches():
    found = reach(Branches(), X, ["past", "norm", "stem"])
    assert set(found.output) == {"head.weight", "past.weight", "stem.weight", "stem.bias"}
    assert set(found.norms) == {"stem.weight", "stem.bias"}
    assert set(found.modules["past"]) == {"past.weight", "stem.weight", "stem.bias"}
    assert set(found.modules["norm"]) == {"stem.weight", "stem.bias", "norm.weight", "norm.bias"}
    assert set(found.modules["stem"]) == {"stem.weight", "stem.bias"}


def test_frozen_tensors_do_not_count():
    model = Branches()
    model.stem.requires_grad_(False)
    found = reach(model, X)
    assert found.norms == () and set(found.output) == {"head.weight", "past.weight"}
    assert "stem.weight" not in trained_by_name(model) and "past.weight" in trained_by_name(model)
    assert reach(model.requires_grad_(False), X).output == ()


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4), nn.RMSNorm(4)])
def test_every_norm_cuts_and_a_relu_in_place_behind_it_works(norm):
    net = nn.Sequential(nn.Linear(4, 4), norm, nn.ReLU(inplace=True), nn.Linear(4, 2))
    with torch.no_grad():
        found = reach(net, X)  # it asks for gradients itself
    assert found.output == ("3.weight", "3.bias") and found.norms == ("0.weight", "0.bias")


def test_nothing_stays_behind():
    model = Branches()
    reach(model, X, ["past"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        reach(model, X[:, :2])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_hooks_see_every_call_and_may_replace_the_output():
    calls = []
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with hooked(net, lambda name, module, z: calls.append(name), lambda name, module, out: torch.zeros(1)):
        assert torch.equal(net(X), torch.zeros(1))
    assert calls == ["", "0", "1"]


def test_tensors_in():
    nested = (X, [None, {"a": X, "b": torch.ones(1, dtype=torch.long)}], "text", 3)
    assert len(tensors_in(nested)) == 2
