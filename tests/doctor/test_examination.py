"""The doctor's statements against training, a dense Hessian, closed forms and nets without norms; and no trace left."""

import copy
import functools
import json
import math
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, layer_norm, mse_loss

import normcore as nc
from normcore.doctor.ahead import course
from normcore.doctor.examination import diagnose


class Net(nn.Module):
    """Two normalized layers and a frozen head."""

    def __init__(self, seed=0, width=16):
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two = nn.Linear(8, width, bias=False), nn.Linear(width, width, bias=False)
        self.register_buffer("head", 0.5 * torch.randn(5, width))
        self.double()

    def forward(self, x):
        for layer in (self.one, self.two):
            x = layer_norm(layer(x), (layer.out_features,), eps=0.0).relu()
        return x @ self.head.T


def random_labels(g):
    return torch.randn(32, 8, generator=g, dtype=torch.float64), torch.randint(5, (32,), generator=g)


def random_cotangents(g):
    x = torch.randn(32, 8, generator=g, dtype=torch.float64)
    return x, 30 * torch.randn(32, 5, generator=g, dtype=torch.float64)


def noise(output, cotangent):
    """A loss whose gradient is nothing but noise, as the law of AdamW assumes."""
    return (output * cotangent).mean()


def train(net, optimizer, draw, loss_fn, g, steps, scheduler=None):
    """The norm before each step, and the root mean square angle that the step turns a layer by."""

    def weights():
        return [p.detach().flatten().clone() for p in net.parameters()]

    norms, turns = [], []
    for _ in range(steps):
        before = weights()
        norms.append(float(torch.cat(before).norm()))
        net.zero_grad()
        x, y = draw(g)
        loss_fn(net(x), y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        chords = [float((a / a.norm() - b / b.norm()).norm()) for a, b in zip(before, weights(), strict=True)]
        turns.append(np.mean([(2 * math.asin(chord / 2)) ** 2 for chord in chords]))
    return np.array(norms), np.sqrt(np.array(turns))


MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3, weight_decay=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.03, weight_decay=0.02, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.03, weight_decay=0.02, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5, betas=(0.9, 0.99)),
}


@functools.cache
def trained(name):
    """A net whose gradients are stationary, its optimizer, batches and loss, and the generator where it stands."""
    draw, loss_fn = (random_cotangents, noise) if name == "adamw" else (random_labels, cross_entropy)
    net, g = Net(5), torch.Generator().manual_seed(6)
    optimizer = MAKERS[name](net.parameters())
    train(net, optimizer, draw, loss_fn, g, 500)
    return net, optimizer, draw, loss_fn, g


def displaced(name, factor=2.0):
    """A copy of a trained net, its weights multiplied, as if the norm had been another."""
    *pair, draw, loss_fn, generator = trained(name)
    net, optimizer = copy.deepcopy(pair)
    g = torch.Generator().set_state(generator.get_state())
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(factor)
    for state in optimizer.state.values():
        for buffer, power in (("momentum_buffer", 1), ("exp_avg", 1), ("exp_avg_sq", 2)):
            if state.get(buffer) is not None:
                state[buffer].div_(factor**power)  # gradients fall as the weights grow
    return net, optimizer, (draw, loss_fn, g)


@pytest.mark.parametrize("name", MAKERS)
def test_norm_angle_and_time_are_what_training_shows(name):
    net, optimizer, (draw, loss_fn, g) = displaced(name)
    d = diagnose(net, optimizer, draw(g), loss_fn=loss_fn, steps=500)
    norms, turns = train(net, optimizer, draw, loss_fn, g, 500)
    value, group = d["equilibrium/group 0"].value, d.groups[0]
    assert value["norm"] == pytest.approx(norms[0], rel=1e-12)
    # S of one batch of 32: five to ten per cent in the norm; AdamW's law adds its own idealisations
    assert value["equilibrium_norm"] == pytest.approx(norms[300:].mean(), rel=0.2)
    assert value["angle"] == pytest.approx(
        np.sqrt((turns[300:] ** 2).mean()), rel=0.15 if name == "adamw" else 0.05
    )
    power = 2 if name == "adamw" else 4

    def predicted(rates):
        rate, target = course(rates, group.family, group.norm**power / group.size)
        return value["equilibrium_norm"] * (rate / target) ** (-2 / power)

    own, slower = predicted(group.rates), predicted(group.rates * [1.0, 0.5, 1.0])
    window = slice(0, int(2 * value["time_constant"]))
    assert np.abs(norms[window] / own[window] - 1).max() < 0.15
    control = 2**0.25 if power == 4 else 2**0.5  # the norm it would settle at with half the decay
    assert np.abs(norms[window] / (slower * control)[window] - 1).max() > 0.15


def test_the_schedule_statements_hold_in_training_and_in_closed_form():
    net, optimizer, (draw, loss_fn, g) = displaced("sgd", factor=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [200])
    d = diagnose(net, optimizer, draw(g), loss_fn=loss_fn, steps=600, scheduler=scheduler)
    run, change = d["run/group 0"], d["change/group 0, step 200"]
    assert (
        run.value["changes"] == [200]
        and run.value["settled_at"] < 200
        and "before the first change" in run.text
    )
    law = nc.relaxation([0, 10**9, 399], ratio_lr=0.1, lr=0.3, weight_decay=0.02)
    said = [change.value[key] for key in ("at_once", "in_the_end", "by_the_next")]
    np.testing.assert_allclose(said, law, rtol=0.02)  # it was within 2 % of equilibrium by then
    norms, _ = train(net, optimizer, draw, loss_fn, g, 600, scheduler)
    e = np.where(np.arange(600) < 200, 0.3, 0.03) / norms**2
    measured = [e[200] / e[150:200].mean(), e[570:].mean() / e[150:200].mean()]
    np.testing.assert_allclose(measured, [said[0], said[2]], rtol=0.15)


def test_arrival_agrees_with_the_closed_form():
    net, optimizer, (draw, loss_fn, g) = displaced("sgd")
    d = diagnose(net, optimizer, draw(g), loss_fn=loss_fn, steps=1000)
    value = d["equilibrium/group 0"].value
    ratio = value["norm"] / value["equilibrium_norm"]
    closed = nc.time_to_equilibrium(ratio * nc.equilibrium(0.3, 0.02).norm, 0.3, 0.02)
    assert d["run/group 0"].value["settled_at"] == pytest.approx(closed, abs=2)
    assert d["run/group 0"].value["overshoot"] <= 1.0 and value["intrinsic_lr"] == pytest.approx(0.006)
    short = diagnose(net, optimizer, draw(g), loss_fn=loss_fn, steps=20)["run/group 0"]
    assert short.value["settled_at"] is None and short.level == "note"


def test_overshoot_from_a_small_norm_is_noted_and_a_reckless_one_warned_of():
    net, optimizer, (draw, loss_fn, g) = displaced("sgd", factor=0.5)
    run = diagnose(net, optimizer, draw(g), loss_fn=loss_fn, steps=300)["run/group 0"]
    assert run.value["overshoot"] == pytest.approx(4.0, rel=0.3) and run.value["overshoot_at"] == 0
    x, y = draw(g)
    net.zero_grad()
    before = [p.detach().clone() for p in net.parameters()]
    loss_fn(net(x), y).backward()
    optimizer.step()
    pairs = [(a.flatten(), b.detach().flatten()) for a, b in zip(before, net.parameters(), strict=True)]
    turn = max(math.acos(float(a @ b / a.norm() / b.norm())) for a, b in pairs)
    assert run.value["largest_angle"] == pytest.approx(turn, rel=0.4)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.3)
    assert diagnose(net, optimizer, draw(g), loss_fn=loss_fn, steps=300)["run/group 0"].level == "warning"


def plain(norm=False):
    torch.manual_seed(0)
    middle = [nn.LayerNorm(6)] if norm else []
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.Tanh(), nn.Linear(6, 3)).double()


def batch_of(outputs=3, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(20, 4, generator=g).double(), torch.randn(20, outputs, generator=g).double()


def of_plain(make, norm=False, **options):
    net = plain(norm)
    return net, diagnose(
        net, make(net.parameters()), batch_of(), loss_fn=mse_loss, **{"steps": 100} | options
    )


def test_without_norms_weight_decay_is_a_penalty():
    _, d = of_plain(lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1))
    assert d["scale-free"].value["shares"] == {
        "alone": 0,
        "jointly": 0,
        "inert": 0,
        "undetermined": 0,
        "rest": 1,
    }
    assert d["weight decay/group 0"].text == "0.1 is a penalty on 0.weight, 0.bias, 2.weight, 2.bias"
    assert "a learning rate" not in str(d) and not any(
        f.name.startswith(("equil", "run")) for f in d.findings
    )
    assert d.warnings == []


RECIPROCAL = {
    "a ReLU net: all but the last bias": (
        [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)],
        ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight"],
        (24 + 6 + 30 + 5 + 15) / (24 + 6 + 30 + 5 + 15 + 3),
    ),
    "a normalized one: gain and shift against the layer behind": (
        [nn.Linear(4, 6, bias=False), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)],
        ["1.weight", "1.bias", "3.weight"],
        (6 + 6 + 18) / (24 + 6 + 6 + 18 + 3),
    ),
    "tanh knows no scale": ([nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)], [], 0.0),
}


@pytest.mark.parametrize("name", RECIPROCAL)
def test_weights_that_are_scale_free_against_each_other(name):
    layers, names, share = RECIPROCAL[name]
    net = copy.deepcopy(nn.Sequential(*layers)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=0.1)
    d = diagnose(net, optimizer, batch_of(), loss_fn=mse_loss, steps=10)
    told = d["scale-free"].value["reciprocal"]
    assert told["names"] == names and told["share"] == pytest.approx(share)
    said = f"; {share:.1%} reciprocally"
    assert said in " ".join(str(d).split()) and said in d._repr_html_()
    assert json.loads(d.to_json())["findings"][0]["value"]["reciprocal"] == told
    assert sum(d["scale-free"].value["shares"].values()) == pytest.approx(1.0)  # it stands beside the roles


def test_a_batch_as_of_hugging_face():
    """One mapping of keyword arguments with its labels says what a pair says."""

    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain(norm=True)

        def forward(self, values, labels=None):
            return types.SimpleNamespace(logits=self.net(values))

    x, y = batch_of()
    pages = []
    for net, batch in ((Keywords(), {"values": x, "labels": y}), (plain(norm=True), (x, y))):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=0.1)
        pages.append(str(diagnose(net, optimizer, batch, loss_fn=mse_loss, steps=10)))
    assert pages[0].replace("net.", "").split() == pages[1].split()


def test_an_eps_that_blurs_leaves_the_roles():
    net = plain(norm=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.01)
    net[1].eps = 1.0
    d = diagnose(net, optimizer, batch_of(), loss_fn=mse_loss, steps=10)
    assert d["weight decay/group 0"].value["names"]["jointly"] == ["0.weight", "0.bias"]
    net[0].bias = None
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.01)
    d = diagnose(net, optimizer, batch_of(), loss_fn=mse_loss, steps=10)
    assert d["weight decay/group 0"].value["names"]["alone"] == ["0.weight"] and "eps" in d.warnings


def test_where_weight_decay_is_which():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
    net = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=5e-4, momentum=0.9)
    batch = torch.randn(16, 1, 5, 5), torch.randint(4, (16,))
    d = diagnose(net, optimizer, batch, loss_fn=cross_entropy, steps=1000)
    names = d["weight decay/group 0"].value["names"]
    assert names["alone"] == ["0.weight"] and names["inert"] == ["0.bias"] and "4.weight" in names["rest"]
    assert d["scale-free"].value["shares"]["alone"] == pytest.approx(
        27 / sum(p.numel() for p in net.parameters())
    )
    off = torch.optim.SGD(net.parameters(), lr=0.1)
    quiet = diagnose(net, off, batch, loss_fn=cross_entropy, steps=1000)
    assert quiet["weight decay/group 0"].text == "none" and "only grows" in quiet["equilibrium/group 0"].text


def test_weights_that_are_scale_free_together():
    net = plain(norm=True)  # a weight and its bias in front of a LayerNorm
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.01)
    d = diagnose(net, optimizer, batch_of(), loss_fn=mse_loss, steps=100)
    assert d["weight decay/group 0"].value["names"]["jointly"] == ["0.weight", "0.bias"]
    x, y = batch_of()
    net.zero_grad()
    mse_loss(net(x), y).backward()
    pair = [net[0].weight, net[0].bias]
    size = sum(float(p.detach().pow(2).sum()) for p in pair) * sum(float(p.grad.pow(2).sum()) for p in pair)
    expected = nc.equilibrium(0.1, 0.01, grad_sq_norm=size).norm
    assert d["equilibrium/group 0"].value["equilibrium_norm"] == pytest.approx(expected, rel=1e-9)
    apart = [
        {"params": [net[0].weight]},
        {"params": [net[0].bias, *net[1].parameters(), *net[3].parameters()]},
    ]
    split = torch.optim.SGD(apart, lr=0.1, weight_decay=0.01)
    said = diagnose(net, split, batch_of(), loss_fn=mse_loss, steps=100)
    assert "other groups" in said["equilibrium/group 0"].text


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_curvature_and_its_edge(momentum, nesterov):
    options = {"momentum": momentum, "nesterov": nesterov}
    net, d = of_plain(lambda p: torch.optim.SGD(p, lr=0.05, **options))
    x, y = batch_of()
    shapes = {name: p.shape for name, p in net.named_parameters()}

    def loss(flat):
        pieces = flat.split([s.numel() for s in shapes.values()])
        values = {name: v.view(s) for (name, s), v in zip(shapes.items(), pieces, strict=True)}
        return mse_loss(torch.func.functional_call(net, values, (x,)), y)

    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    top = float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1])
    value = d["curvature"].value
    assert value["curvature"] == pytest.approx(top, rel=1e-2)
    assert value["critical_lr"] * value["curvature"] == pytest.approx(2.0) and value["lr"] == 0.05

    def grows(lr):
        """Whether the optimizer itself diverges on a quadratic of curvature 1."""
        w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = torch.optim.SGD([w], lr=lr, **options)
        for _ in range(500):
            w.grad = w.detach().clone()
            optimizer.step()
        return not abs(float(w.detach())) < 1.0

    edge = value["edge"] * value["curvature"]
    assert grows(1.01 * edge) and not grows(0.99 * edge)


def test_levels_of_the_rate():
    top = of_plain(lambda p: torch.optim.SGD(p, lr=0.05))[1]["curvature"].value["curvature"]

    def level(c, norm=False):
        return of_plain(lambda p: torch.optim.SGD(p, lr=c / top), norm)[1]["curvature"].level

    assert [level(c) for c in (1.0, 3.0, 5.0)] == ["ok", "note", "warning"]
    assert level(50.0, norm=True) == "note"  # scale-free weights heal


def test_eps_of_layers_and_of_adam():
    net = plain(norm=True)
    net[1].eps = 0.5
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1, eps=1e-2)
    x, y = batch_of()
    d = diagnose(net, optimizer, (x, y), loss_fn=mse_loss, steps=100)
    with torch.no_grad():
        with_eps = net(x)
        net[1].eps = 1e-30
        without = net(x)
    assert d["eps"].value["now"] == pytest.approx(
        float((with_eps - without).norm() / without.norm()), rel=1e-9
    )
    net[1].eps = 0.5
    mse_loss(net(x), y).backward()
    entries = torch.cat([p.grad.flatten().abs() for p in net.parameters()])
    assert d["eps/optimizer"].value["effect"] == pytest.approx(
        float((1e-2 / (entries + 1e-2)).mean()), rel=1e-9
    )
    assert d.warnings == ["eps", "eps/optimizer"]
    net[1].eps = 1e-5
    small = diagnose(net, torch.optim.SGD(net.parameters(), lr=1e-3), (x, y), loss_fn=mse_loss, steps=100)
    assert small["eps"].level == "ok" and small.warnings == []


def test_eps_grows_as_the_norm_falls():
    net = plain(norm=True)
    net[1].eps = 1e-4
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, weight_decay=1.0)
    d = diagnose(net, optimizer, batch_of(), loss_fn=mse_loss, steps=100)
    shrink = d["equilibrium/group 0"].value["equilibrium_norm"] / d["equilibrium/group 0"].value["norm"]
    x, _ = batch_of()
    with torch.no_grad():
        for p in net[0].parameters():
            p.mul_(shrink)
        with_eps = net(x)
        net[1].eps = 1e-30
        effect = float((with_eps - net(x)).norm() / net(x).norm())
    assert shrink < 0.5 and d["eps"].value["later"] == pytest.approx(effect, rel=1e-3)


def test_what_cannot_be_said_is_said():
    _, d = of_plain(lambda p: torch.optim.RMSprop(p, lr=1e-3, weight_decay=0.1), norm=True)
    assert "cannot be said" in d["equilibrium/group 0"].text and d["plan/batch x2, group 0"].level == "note"
    assert (
        "not those of this optimizer" in d["curvature"].text
        and "a learning rate" in d["weight decay/group 0"].text
    )
    _, d = of_plain(lambda p: torch.optim.SGD(p, lr=3.0, weight_decay=0.9), norm=True)
    assert "lr*weight_decay < 2" in d["equilibrium/group 0"].text and "equilibrium/group 0" in d.warnings
    net = plain()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    d = diagnose(net, optimizer, batch_of(), loss_fn=mse_loss, steps=10, scheduler=plateau)
    assert "follows a metric" in d["change"].text


def test_a_frozen_group_is_passed_over():
    net = plain()
    groups = [{"params": net[0].parameters()}, {"params": net[2].parameters()}]
    net[2].requires_grad_(False)
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.1)
    d = diagnose(net, optimizer, batch_of(), loss_fn=mse_loss, steps=10)
    assert d["weight decay/group 1"].text == "none" and d["scale-free"].value["weights"] == 30


def test_a_page_is_in_the_order_of_its_topics():
    net = plain(norm=True)
    groups = [{"params": net[0].parameters()}, {"params": [*net[1].parameters(), *net[3].parameters()]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.01)
    page = str(diagnose(net, optimizer, batch_of(), loss_fn=mse_loss, steps=100))
    heads = [line for line in page.splitlines() if line.isupper()]
    assert heads == ["SCALE-FREE", "WEIGHT DECAY", "EQUILIBRIUM", "RUN", "EPS", "CURVATURE", "PLAN"]
    assert max(map(len, page.splitlines())) <= 80


def test_what_nobody_trains_is_named():
    net = plain()
    d = diagnose(net, torch.optim.SGD(net[0].parameters(), lr=0.1), batch_of(), loss_fn=mse_loss, steps=10)
    assert d["scale-free"].value["idle"] == ["2.weight", "2.bias"] and d.warnings == ["scale-free"]


class Noisy(nn.Module):
    """Everything that a pass can move: dropout, running statistics, a buffer that counts, one frozen tensor."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
        self.body[3].bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.body(x)


def everything(net, optimizer, scheduler):
    """All that a diagnosis might touch."""
    modules = [
        (m.training, m.__dict__.get("eps"), list(m._forward_hooks), list(m._forward_pre_hooks))
        for m in net.modules()
    ]
    return copy.deepcopy(
        (
            {name: t.clone() for name, t in net.state_dict().items()},
            [None if p.grad is None else p.grad.clone() for p in net.parameters()],
            [p.requires_grad for p in net.parameters()],
            modules,
            optimizer.state_dict(),
            scheduler.state_dict(),
            [*optimizer._optimizer_step_pre_hooks, *optimizer._optimizer_step_post_hooks],
            torch.get_rng_state(),
            np.random.get_state()[1].tolist(),
            torch.is_grad_enabled(),
        )
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("grad", [True, False])
def test_nothing_is_changed(grad):
    net = Noisy()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=50)
    batch = torch.randn(12, 4), torch.randint(3, (12,))
    cross_entropy(net(batch[0]), batch[1]).backward()
    optimizer.step()
    scheduler.step()
    net.eval()
    net.body[1].train()
    grads = [p.grad for p in net.parameters()]
    before = everything(net, optimizer, scheduler)
    with torch.set_grad_enabled(grad):
        diagnose(net, optimizer, batch, loss_fn=cross_entropy, steps=40, scheduler=scheduler)
    assert same(before, everything(net, optimizer, scheduler))
    assert all(a is b for a, b in zip(grads, (p.grad for p in net.parameters()), strict=True))
    net.body[1].eps = 1e-4
    assert not same(before, everything(net, optimizer, scheduler))  # it would have been seen


def test_a_failing_model_leaves_nothing_either():
    net = Noisy()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    before = everything(net, optimizer, scheduler)
    with pytest.raises(ValueError, match="loss_fn must be finite on the batch, got nan"):
        diagnose(net, optimizer, (torch.full((5, 4), math.nan), torch.zeros(5, 3)), loss_fn=mse_loss, steps=5)
    assert same(before, everything(net, optimizer, scheduler))


def bad(**changed):
    net = plain()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    given = {
        "model": net,
        "optimizer": optimizer,
        "batch": batch_of(),
        "loss_fn": mse_loss,
        "steps": 5,
    } | changed
    return diagnose(given.pop("model"), given.pop("optimizer"), given.pop("batch"), **given)


def other():
    return torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"model": None}, TypeError, "model must be a torch.nn.Module, got NoneType"),
        ({"optimizer": "sgd"}, TypeError, "optimizer must be a torch.optim.Optimizer, got str"),
        ({"batch": torch.ones(2, 4)}, TypeError, r"batch must be a pair \(x, y\), got Tensor"),
        ({"batch": (1, 2, 3)}, TypeError, r"batch must be a pair \(x, y\), got tuple"),
        ({"loss_fn": None}, TypeError, "loss_fn must be callable, got NoneType"),
        ({"scheduler": 3}, TypeError, "scheduler must be a torch LRScheduler or None, got int"),
        ({"steps": 0}, ValueError, "steps must be >= 1, got 0"),
        ({"steps": 2.0}, TypeError, "steps must be an integer, got 2.0"),
        ({"steps": None}, TypeError, "steps must be an integer, got None"),
        ({"scheduler_every": 0}, ValueError, "scheduler_every must be >= 1, got 0"),
        (
            {"loss_fn": lambda o, y: o},
            ValueError,
            "loss_fn must return one number, got shape",
        ),
        (
            {"optimizer": other()},
            ValueError,
            "optimizer must hold parameters of the model only, got 1 others",
        ),
        (
            {"scheduler": torch.optim.lr_scheduler.StepLR(other(), 3)},
            ValueError,
            "scheduler must be of this optimizer, got one of another",
        ),
    ],
)
def test_wrong_input_is_named(changed, error, message):
    with pytest.raises(error, match=message):
        bad(**changed)


def test_frozen_models_and_attached_gauges_are_refused():
    net = plain()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="model must have a trainable parameter, got none"):
        diagnose(net, optimizer, batch_of(), loss_fn=mse_loss, steps=5)
    net = plain(norm=True)
    groups = [{"params": net[0].parameters(), "scale_invariant": True}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.01)
    nc.ExpLR(optimizer, net)
    with pytest.raises(ValueError, match="optimizer must not be under an ExpLR"):
        diagnose(net, optimizer, batch_of(), loss_fn=mse_loss, steps=5)
