"""All scaling symmetries of nets for which they are known, or found by brute force."""

import math
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from invariance_nets import (
    Block,
    LayerScale,
    ZeroInit,
    classifier_batch,
    conv_net,
    gpt,
    llama,
    plain_copy,
    times_ten,
    vit,
)
from torch import nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

import normcore as nc
from normcore.invariance import probing, symmetries
from normcore.invariance.probing import Evaluator
from normcore.invariance.symmetries import Rows, joint_groups, reverse_rows

IMAGES = classifier_batch(6, 1, 8, 8)[0]
TOKENS = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(1))
NETS = {
    "conv": (lambda: conv_net(nn.BatchNorm2d, bias=True), IMAGES),
    "zero-initialised branches": (lambda: ZeroInit().double(), IMAGES),
    "layer scale": (lambda: LayerScale().double(), IMAGES),
    "pre-norm block": (Block, classifier_batch(6, 3, 5)[0]),
    "llama": (lambda: llama(blocks=1), TOKENS),
    "llama with qk-norm": (lambda: llama(blocks=1, qk_norm=True), TOKENS),
    "vit": (lambda: vit().double(), IMAGES),
}


def forward_mode_dimension(model, x, points=6):
    """The dimension of the null space of the derivatives along each tensor, one forward-mode pass for each of them."""
    rows = []
    for seed in range(points):
        copy = plain_copy(model, seed)
        for module in copy.modules():
            if isinstance(module, nn.BatchNorm2d):  # which moves its statistics in place
                module.running_mean = module.running_var = module.num_batches_tracked = None
        tensors = {name: p.detach() for name, p in copy.named_parameters()}
        zeros = {name: torch.zeros_like(p) for name, p in tensors.items()}

        def output(values, copy=copy):
            return torch.func.functional_call(copy, values, (x,)).flatten()

        with sdpa_kernel(SDPBackend.MATH):
            along = [jvp(output, (tensors,), ({**zeros, n: p},))[1] for n, p in tensors.items()]
        rows.append(torch.stack(along, 1))
    matrix = torch.cat(rows)
    values = torch.linalg.svdvals(matrix / matrix.norm(dim=0).clamp_min(1e-8 * matrix.norm()))
    return int((values < 1e-5 * values[0]).sum())


@pytest.mark.parametrize("name", NETS)
def test_every_symmetry_holds_at_a_factor_of_ten_and_none_is_missing(name):
    make, x = NETS[name]
    model = make()
    found = nc.scaling_symmetries(model, (x, None))
    oracle, wide = plain_copy(model), x.double() if x.is_floating_point() else x
    for row in found.exponents:
        exponents = {n: int(a) for n, a in zip(found.names, row, strict=True) if a}
        assert times_ten(oracle, wide, exponents) < 2e-6
        changed = exponents | {next(iter(exponents)): 3}
        assert len(exponents) == 1 or times_ten(oracle, wide, changed) > 1e-4  # control: another exponent
    assert found.dimension == len(found.exponents) == np.linalg.matrix_rank(found.exponents)
    assert len(found.exponents) == forward_mode_dimension(model, wide)
    assert abs(found.exponents).max() <= 2 and found.gap > 1e3


def rows_of(found):
    """The symmetries as readable sets."""
    return {
        " ".join(f"{n}^{a}" for n, a in zip(found.names, row, strict=True) if a) for row in found.exponents
    }


def test_a_conv_net_by_hand():
    found = nc.scaling_symmetries(conv_net(nn.BatchNorm2d, bias=True), (IMAGES, None))
    assert rows_of(found) == {
        "0.weight^1",
        "0.bias^1",
        "3.weight^1",
        "3.bias^1",
        "1.weight^1 1.bias^1",
        "4.weight^1 4.bias^1 8.weight^-1",
    }
    assert found.inert == ("0.bias", "3.bias")
    with pytest.raises(FrozenInstanceError):
        found.gap = 0.0


def test_query_against_key_and_value_against_output():
    found = nc.scaling_symmetries(vit(), (IMAGES.float(), None))
    rows = rows_of(found)
    for b in (0, 1):
        assert f"blocks.{b}.k.bias^1" in rows and f"blocks.{b}.k.bias" in found.inert
        assert f"blocks.{b}.q.weight^1 blocks.{b}.q.bias^1 blocks.{b}.k.weight^-1" in rows
        assert f"blocks.{b}.v.weight^1 blocks.{b}.v.bias^1 blocks.{b}.o.weight^-1" in rows
        assert f"blocks.{b}.up.weight^1 blocks.{b}.up.bias^1 blocks.{b}.down.weight^-1" in rows
    assert "norm.weight^1 norm.bias^1 head.weight^-1" in rows


def test_literal_eps_and_small_values_hide_nothing():
    found = nc.scaling_symmetries(gpt(), (TOKENS, None))
    assert found.gap > 1e6 and found.dimension == len(found.exponents) == 14


class Powers(nn.Module):
    """a^2 b and c / d^3, three outputs each."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Parameter(torch.rand(3) + 0.5) for _ in range(4))

    def forward(self, x):
        return torch.cat([x + self.a**2 * self.b, x * self.c / self.d**3])


def test_powers_give_integers():
    found = nc.scaling_symmetries(Powers(), (torch.ones(3), None))
    assert rows_of(found) == {"a^-1 b^2", "c^3 d^1"}


@pytest.mark.parametrize("outputs", [1, 2])
def test_one_output_is_enough(outputs):
    few = nc.scaling_symmetries(vit(outputs), (IMAGES[:1].float(), None))
    many = nc.scaling_symmetries(vit(40), (IMAGES.float(), None))
    both = np.vstack([few.exponents, many.exponents])
    assert len(few.exponents) == len(many.exponents) == np.linalg.matrix_rank(both) == 14


def test_control_a_net_without_symmetry_has_none():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 3), nn.Sigmoid())
    found = nc.scaling_symmetries(net, (torch.randn(20, 5), None))
    assert found.exponents.shape == (0, 4) and found.gap == math.inf and found.dimension == 0
    assert "0 scaling symmetries of 4 tensors" in str(found)


def test_gradient_flow_conserves_what_the_table_says():
    model, (x, y) = conv_net(lambda n: nn.BatchNorm2d(n, eps=1e-30)), classifier_batch(16, 1, 8, 8)
    found = nc.scaling_symmetries(model, (x, y))
    squares = [float(p.detach().square().sum()) for p in model.parameters()]
    assert found.conserved == pytest.approx(found.exponents @ squares)
    grads = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    radial = [float((g * p.detach()).sum()) for g, p in zip(grads, model.parameters(), strict=True)]
    assert abs(found.exponents @ radial).max() < 1e-12 < 1e-3 < max(map(abs, radial))


def test_the_table_names_kinds():
    text = str(nc.scaling_symmetries(vit(), (IMAGES.float(), None)))
    kinds = [line.split()[0] for line in text.splitlines()[2:]]
    assert set(kinds) == {"inert", "jointly", "reciprocal"} and "blocks.0.k.weight^-1" in text


class Stairs(nn.Module):
    """Flat almost everywhere in `steps`, which no gradient sees."""

    def __init__(self):
        super().__init__()
        self.steps, self.first = nn.Parameter(torch.rand(4) + 1.0), nn.Linear(4, 4, bias=False)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(self.first(x)) * torch.floor(4 * self.steps))


def test_what_only_derivatives_take_for_a_symmetry_is_not_confirmed():
    torch.manual_seed(0)
    found = nc.scaling_symmetries(Stairs(), (torch.randn(8, 4), None))
    assert "steps^1" not in rows_of(found) and "first.weight^1" in rows_of(found)
    assert found.dimension == len(found.exponents) + 1 and "1 more undetermined" in str(found)


class Ratio(nn.Module):
    """(a + b) / (a + b + c) depends on all three, and not on their common scale; d stays outside."""

    def __init__(self):
        super().__init__()
        values = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.5, 2.5], [1.0, 1.0]], dtype=torch.float64)
        self.a, self.b, self.c, self.d = (nn.Parameter(row.clone()) for row in values)

    def forward(self, x):
        return x * (self.a + self.b * x) / (self.a + self.b + self.c * x**2) + self.d


def joint(names):
    x = torch.rand(10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    evaluate = Evaluator(Ratio(), x, seed=0)
    return joint_groups(evaluate, reverse_rows(evaluate, names, 0)[0], 0)


def test_the_search_finds_the_set_and_not_a_part_of_it():
    assert joint(["a", "b", "c", "d"]) == [["a", "b", "c"]]
    assert joint(["a", "b", "d"]) == joint(["d"]) == []


def test_of_overlapping_sets_the_smallest(monkeypatch):
    radial = np.random.default_rng(0).standard_normal((12, 5))
    radial[:, 1] = -radial[:, 0]
    radial[:, 3] = -radial[:, 1] - radial[:, 2]  # a + b = 0 and b + c + d = 0
    monkeypatch.setattr(symmetries, "more_rows", lambda evaluate, rows, seed: rows)
    found = joint_groups(SimpleNamespace(eps=1e-16), Rows(list("abcde"), radial, abs(radial)), 0)
    assert found == [["a", "b"]]


class Flat(nn.Module):
    """Takes rows of one length only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.net = nn.Embedding(11, 2), nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 3))

    def forward(self, ids):
        return self.net(self.table(ids).flatten(1))


@pytest.mark.parametrize("make", [gpt, Flat])
def test_sets_are_searched_on_short_rows_where_the_model_takes_them(make, monkeypatch):
    """And judged on the whole ones: what comes out is the same."""
    lengths, ids = [], torch.randint(11, (6, 6), generator=torch.Generator().manual_seed(1))

    def forward(model, x):
        lengths.append(x["ids"].shape[1])
        return model(x["ids"])

    batch = {"ids": ids, "labels": torch.arange(6) % 3}

    def symmetries():
        return nc.scaling_symmetries(make(), batch, forward=forward).exponents.tolist()

    def sets():
        report = nc.scale_invariance(make(), cross_entropy, batch, forward=forward)
        return [group.names for group in report.groups.values()]

    whole = symmetries(), sets()
    assert set(lengths) == {6} and len(whole[1]) == (make is gpt)
    monkeypatch.setattr(probing, "FEW", 3)
    for search, expected in zip((symmetries, sets), whole, strict=True):
        lengths.clear()
        assert search() == expected
        assert (lengths.count(3) > 4) == (make is gpt)


def test_dictionaries_keywords_and_structures():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6), nn.Linear(6, 2))

        def forward(self, *, inputs, labels=None):
            return {"scores": [self.net(inputs)], "names": "ab", "count": torch.tensor(3)}

    torch.manual_seed(0)
    model, x = Nested(), torch.randn(8, 4)
    expected = nc.scaling_symmetries(model.net, (x, None)).exponents.tolist()
    assert nc.scaling_symmetries(model, {"inputs": x}).exponents.tolist() == expected
    assert nc.scaling_symmetries(model, ({"inputs": x}, None)).exponents.tolist() == expected

    def forward(model, x):
        return model(inputs=x)["scores"][0]

    assert nc.scaling_symmetries(model, (x, None), forward=forward).exponents.tolist() == expected


def test_a_model_that_makes_float32_tensors_is_tested_in_float32():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6), nn.Linear(6, 2))

        def forward(self, x):
            return self.net(x @ torch.eye(4))

    torch.manual_seed(0)
    found = nc.scaling_symmetries(Fixed(), (torch.randn(8, 4), None))
    assert "net.0.weight^1" in rows_of(found) and found.gap > 1e2


@pytest.mark.parametrize(
    ("model", "batch", "error", "message"),
    [
        (None, (1, 2), TypeError, "model must be a torch.nn.Module, got NoneType"),
        (nn.Linear(2, 2), torch.ones(3, 2), TypeError, r"batch must be a pair \(x, y\), got Tensor"),
        (
            nn.Linear(2, 2).requires_grad_(False),
            (torch.ones(3, 2), None),
            ValueError,
            "trainable parameter, got none",
        ),
        (nn.Linear(2, 2), (torch.full((3, 2), math.inf), None), ValueError, "finite outputs"),
    ],
)
def test_bad_input(model, batch, error, message):
    with pytest.raises(error, match=message):
        nc.scaling_symmetries(model, batch)


def test_outputs_without_gradient_are_refused():
    with pytest.raises(ValueError, match="outputs that have a gradient, got none"):
        nc.scaling_symmetries(nn.Linear(2, 2), (torch.ones(3, 2), None), forward=lambda m, x: m(x).detach())


class Centred(nn.Module):
    """Compares its rows: the mean over them is taken away."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.up, self.head = nn.Embedding(11, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, ids):
        h = self.up(self.table(ids).mean(1))
        return self.head(torch.tanh(h - h.mean(0)))


def test_rows_are_made_short_and_none_is_left_out():
    """A single row would be its own mean, and all behind it inert."""
    found = nc.scaling_symmetries(Centred(), (TOKENS, None))
    assert rows_of(found) == {"up.bias^1", "table.weight^1 up.weight^-1"} and found.inert == ("up.bias",)
