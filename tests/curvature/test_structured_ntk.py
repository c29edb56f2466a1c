"""The layer-wise kernel: equal to the dense one, refused with a reason where it would not be."""

import pytest
import torch
from curvature_nets import make
from oracles_curvature import dense_ntk
from torch import nn

import normcore.curvature.layerwise as structured
from normcore.curvature.layerwise import StructuredKernel, Unstructured
from normcore.curvature.snapshot import Snapshot


def kernel_of(model, x):
    """The whole kernel (without 1/m), column by column."""
    kernel = StructuredKernel(Snapshot(model), x)
    size = kernel.samples * kernel.outputs
    columns = [
        kernel.apply(e.view(kernel.samples, -1)).flatten() for e in torch.eye(size, dtype=torch.float64)
    ]
    return torch.stack(columns, dim=1) / kernel.samples


def agrees(model, x):
    exact = dense_ntk(model, x)
    return float((kernel_of(model, x) - exact).norm() / exact.norm()) < 1e-12


LAYERS = {
    "linear on tokens": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 2)),
        (6, 5, 3),
    ),
    "linear, wide": (
        lambda: nn.Sequential(nn.Linear(40, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)),
        (6, 40),
    ),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, stride=2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)
        ),
        (6, 2, 8),
    ),
    "conv2d same": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, (2, 3), padding="same"), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)
        ),
        (5, 1, 4, 4),
    ),
    "conv2d, deep": (
        lambda: nn.Sequential(nn.Conv2d(12, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 2)),
        (5, 12, 2, 2),
    ),
    "instance-like group": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(4, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)
        ),
        (5, 1, 4, 4),
    ),
    "rms": (lambda: nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.Tanh(), nn.Linear(4, 2)), (6, 3)),
    "gain without shift": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, bias=False), nn.Linear(4, 2)),
        (6, 3),
    ),
    "batch, running": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 2)
        ).eval(),
        (5, 1, 4, 4),
    ),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_every_layer(name):
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    model = build().double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
        for b in model.buffers():
            if b.is_floating_point():
                b += 0.5
    assert agrees(model, torch.randn(*shape, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["attention", "conv", "relu"])
def test_whole_nets(kind):
    model, x = make(kind)
    assert agrees(model.eval(), x)


@pytest.mark.parametrize("rows", [True, False])
def test_both_ways_to_keep_a_layer(rows, monkeypatch):
    monkeypatch.setattr(structured, "prefers_rows", lambda *sizes: rows)
    model, x = make("attention")
    assert agrees(model, x)
    build, shape = LAYERS["conv1d"]
    assert agrees(build().double(), torch.randn(*shape, dtype=torch.float64))


class Coupled(nn.Linear):
    """A subclass may do anything."""

    def forward(self, x):
        return super().forward(x)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.b(h - 0.01 * h.mean(0))


class Bypassed(Mixing):
    def forward(self, x):
        return self.b(torch.tanh(self.a(x))) + 1e-3 * nn.functional.linear(
            x[:, :4].sum(1, True), self.b.bias[:, None]
        )


class Turned(Mixing):
    """Tokens first, samples second: the layers see another order."""

    def forward(self, x):
        return self.b(torch.tanh(self.a(x.transpose(0, 1))).transpose(0, 1).sum(1))


REFUSED = {
    "samples interact": (Mixing, (6, 3), "samples or parameters that interact"),
    "a weight used beside its layer": (Bypassed, (6, 3), "samples or parameters that interact"),
    "order of axes": (Turned, (6, 6, 3), "samples or parameters that interact"),
    "tokens first": (Turned, (6, 5, 3), "whose input does not begin with the samples"),
    "a subclass": (lambda: Coupled(3, 2), (6, 3), "weight of a Coupled"),
    "reflected borders": (
        lambda: nn.Sequential(nn.Conv1d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten()),
        (4, 1, 5),
        "padding_mode='reflect'",
    ),
    "batch statistics": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        (6, 3),
        "a BatchNorm1d with batch statistics",
    ),
    "three dimensions": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten()),
        (4, 1, 2, 2, 2),
        "weight of a Conv3d",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused(name):
    torch.manual_seed(0)
    build, shape, reason = REFUSED[name]
    with pytest.raises(Unstructured, match=reason):
        StructuredKernel(Snapshot(build().double()), torch.randn(*shape, dtype=torch.float64))


def test_embeddings_with_rules_of_their_own_are_refused():
    for options in ({"max_norm": 1.0}, {"scale_grad_by_freq": True}):
        model = nn.Sequential(nn.Embedding(5, 3, **options), nn.Flatten(), nn.Linear(6, 2)).double()
        with pytest.raises(Unstructured, match="an Embedding with max_norm or scale_grad_by_freq"):
            StructuredKernel(Snapshot(model), torch.randint(5, (4, 2)))


def test_memory_is_bounded_and_hooks_go(monkeypatch):
    monkeypatch.setattr(structured, "MEMORY", 1000)
    model, x = make("layer")
    with pytest.raises(Unstructured, match="more factors than fit 1000 bytes"):
        StructuredKernel(Snapshot(model), x)
    assert not any(m._forward_hooks for m in model.modules())
    # Factors of a wide layer: its inputs 6*40, and deltas of 4 outputs for each of 6*4.
    wide, x = nn.Linear(40, 4, bias=False).double(), torch.randn(6, 40).double()
    monkeypatch.setattr(structured, "MEMORY", 8 * (6 * 40 + 4 * 6 * 4))
    assert agrees(wide, x)
    monkeypatch.setattr(structured, "MEMORY", 8 * (6 * 40 + 4 * 6 * 4) - 1)
    with pytest.raises(Unstructured, match="more factors than fit"):
        StructuredKernel(Snapshot(wide), x)


def test_a_layer_that_is_not_reached_adds_nothing():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle, self.blocked = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            self.blocked(x)
            return self.used(x)

    torch.manual_seed(0)
    assert agrees(Skips().double(), torch.randn(5, 3).double())
