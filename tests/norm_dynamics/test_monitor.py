"""NormMonitor: every number against a loop written out, on every optimizer, under ExpLR, AMP, closures and checkpoints."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from normcore.equivalence.optimizer import ExpLR
from normcore.norm_dynamics.equilibrium import equilibrium
from normcore.norm_dynamics.monitor import NormMonitor
from normcore.norm_dynamics.readings import COLUMNS


class Net(nn.Module):
    """Two normalized layers and a frozen head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.register_buffer("head", torch.randn(4, 8))
        self.double()

    def forward(self, x):
        for layer in (self.one, self.two):
            x = nn.functional.layer_norm(layer(x), (8,), eps=0.0).relu()
        return x @ self.head.T


def batches(steps):
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 6, generator=g, dtype=torch.float64), torch.randint(4, (16,), generator=g))
        for _ in range(steps)
    ]


def backward(net, x, y):
    net.zero_grad()
    cross_entropy(net(x), y).backward()


def vector(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()]).numpy().copy()


MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3, weight_decay=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.02, momentum=0.9, foreach=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.02, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3, fused=True),
}


def watch(name, steps=30, *, every=1, horizon=10, wrap=lambda p: p):
    """Run a net, with its monitor, and the weights and gradients at each step."""
    net = Net()
    optimizer = MAKERS[name](wrap(net.parameters()))
    monitor = NormMonitor(optimizer, net, every=every, horizon=horizon)
    weights, grads = [vector(net)], []
    for x, y in batches(steps):
        backward(net, x, y)
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]).numpy().copy())
        optimizer.step()
        weights.append(vector(net))
    return net, optimizer, monitor, np.array(weights), np.array(grads)


def mean(values, horizon):
    w = (1 - 1 / horizon) ** np.arange(len(values))[::-1]
    return (w * values).sum() / w.sum()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("every", [1, 3])
def test_every_number_of_the_log(name, every):
    _, optimizer, monitor, w, g = watch(name, every=every)
    log, read = monitor.log(), slice(None, None, every)
    assert log is monitor.last and all(type(v) is float for v in log.values())
    assert json.loads(json.dumps(log)) == log
    group = optimizer.param_groups[0]
    lr, wd = group["lr"], group["weight_decay"]
    for label, part in (
        ("group0", slice(None)),
        ("one.weight", slice(0, 48)),
        ("two.weight", slice(48, None)),
    ):
        before, after, grad = w[:-1, part][read], w[1:, part][read], g[:, part][read]
        r = (before**2).sum(1)
        moved = ((after - before) ** 2).sum(1)
        norm = np.linalg.norm(after[-1])
        own = {column: log[f"{label}/{column}"] for column in COLUMNS}
        assert own["norm"] == pytest.approx(norm, rel=1e-12)
        assert own["grad_norm"] == pytest.approx(np.linalg.norm(grad[-1]), rel=1e-12)
        cosine = before[-1] @ after[-1] / np.linalg.norm(before[-1]) / norm
        assert own["angle"] == pytest.approx(math.acos(cosine), rel=1e-7)
        if "adamw" in name:
            options = dict(optimizer="adamw", betas=(0.9, 0.999))
            update = (after - (1 - lr * wd) * before) / lr
            size, momentum = (update**2).sum(1), 0.0
            assert own["effective_lr"] == pytest.approx(lr / norm, rel=1e-12)
        else:
            options = dict(optimizer="nesterov" if name == "nesterov" else "sgd")
            size, momentum = (grad**2).sum(1) * r, group["momentum"]
            assert own["effective_lr"] == pytest.approx(lr / (1 - momentum) / norm**2, rel=1e-12)
        assert own["intrinsic_lr"] == pytest.approx(lr * wd / (1 - momentum), rel=1e-12)
        state = equilibrium(lr, wd, momentum, grad_sq_norm=mean(size, 10), **options)
        assert own["grad_sq_norm"] == pytest.approx(mean(size, 10), rel=1e-10)
        assert own["equilibrium_norm"] == pytest.approx(state.norm, rel=1e-10)
        assert own["equilibrium_angle"] == pytest.approx(state.angle, rel=1e-10)
        assert own["distance"] == pytest.approx(norm / state.norm - 1, rel=1e-8)
        chord = (2 * math.sin(state.angle / 2)) ** 2
        assert own["rho"] == pytest.approx(mean(moved, 10) / mean(chord * r, 10), rel=1e-10)


def test_rho_and_distance_arrive():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=0.04)
    monitor = NormMonitor(optimizer, net, horizon=400)
    readings = []
    for t, (x, y) in enumerate(batches(1200)):
        y = torch.randint(
            4, (16,), generator=torch.Generator().manual_seed(t)
        )  # labels that cannot be learnt
        backward(net, x, y)
        optimizer.step()
        if t in (9, 1199):
            readings.append(monitor.log())
    early, late = readings
    for label in ("group0", "one.weight", "two.weight"):
        assert abs(late[f"{label}/rho"] - 1) < 0.03 and abs(late[f"{label}/distance"]) < 0.1
    assert (
        abs(early["group0/rho"] - 1) > 0.2
        and early["group0/steps_to_equilibrium"] > 2 > late["group0/steps_to_equilibrium"]
    )


def test_the_run_is_left_alone():
    quiet = Net()
    optimizer = MAKERS["momentum"](quiet.parameters())
    for x, y in batches(30):
        backward(quiet, x, y)
        optimizer.step()
    watched, *_ = watch("momentum")
    assert np.array_equal(vector(quiet), vector(watched))


def test_nesterov_foreach_changes_gradients_in_place():
    # Without weight decay torch's foreach Nesterov adds the buffer to .grad itself: read before the step.
    w = nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.5, nesterov=True, foreach=True)
    monitor = NormMonitor(optimizer)
    w.grad = torch.tensor([0.0, 2.0], dtype=torch.float64)
    optimizer.step()
    assert float(w.grad.norm()) != 2.0
    assert monitor.log()["group0/grad_norm"] == 2.0


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adamw"])
def test_under_exp_lr_it_reads_the_run_with_weight_decay(name):
    def go(convert):
        net = Net()
        groups = [{"params": list(net.parameters()), "scale_invariant": True}]
        optimizer = MAKERS[name](groups)
        exp_lr = ExpLR(optimizer, net) if convert else None
        monitor = NormMonitor(optimizer, net, horizon=10, exp_lr=exp_lr)
        logs = []
        for t, (x, y) in enumerate(batches(150)):
            optimizer.param_groups[0]["lr"] *= 0.5 if t == 60 else 1.0
            backward(net, x, y)
            optimizer.step()
            if t % 10 == 9:
                logs.append(monitor.log())
        return logs, exp_lr, optimizer, net

    ordinary, *_ = go(False)
    converted, exp_lr, optimizer, net = go(True)
    if name != "adamw":
        assert exp_lr.gauges[0].doublings > 0  # a rebase lies in between
    for one, other in zip(ordinary, converted, strict=True):
        for key, value in one.items():
            assert other[key] == pytest.approx(value, rel=1e-8, abs=1e-8), key
    # Without exp_lr the norms are those of the converted weights.
    monitor = NormMonitor(optimizer, net)
    backward(net, *batches(1)[0])
    optimizer.step()
    assert monitor.log()["group0/norm"] != pytest.approx(ordinary[-1]["group0/norm"], rel=0.05)


def test_groups_and_names():
    net = Net()
    groups = [
        {"params": [net.one.weight], "weight_decay": 0.1},
        {"params": [net.two.weight], "weight_decay": 0.0, "lr": 0.02},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    monitor = NormMonitor(optimizer)
    backward(net, *batches(1)[0])
    optimizer.step()
    log = monitor.log()
    assert {key.split("/")[0] for key in log} == {"group0.0", "group1.0", "group0", "group1"}
    assert log["group0/norm"] == log["group0.0/norm"] != log["group1/norm"]
    assert log["group0/intrinsic_lr"] == pytest.approx(0.01) and log["group1/intrinsic_lr"] == 0.0
    assert math.isnan(log["group1/rho"]) and math.isnan(log["group1/equilibrium_norm"])
    assert log["group1/effective_lr"] == pytest.approx(0.02 / float(net.two.weight.detach().norm()) ** 2)


@pytest.mark.skipif(torch.__version__ < (2, 6), reason="optimizers of this torch know no names")
def test_an_optimizer_that_knows_names():
    optimizer = torch.optim.SGD(list(Net().named_parameters()), lr=0.1)
    monitor = NormMonitor(optimizer)
    optimizer.step()
    assert "two.weight/norm" in monitor.log()


def test_a_tensor_without_gradient_and_a_group_that_comes_later():
    net = Net()
    optimizer = torch.optim.SGD([net.one.weight], lr=0.1, weight_decay=0.1)
    monitor = NormMonitor(optimizer, net)
    net.one.weight.grad = torch.ones_like(net.one.weight)
    optimizer.step()
    optimizer.add_param_group({"params": [net.two.weight]})
    optimizer.step()
    log = monitor.log()
    assert log["two.weight/grad_norm"] == 0.0 == log["two.weight/angle"]
    assert log["one.weight/grad_norm"] == pytest.approx(math.sqrt(48))
    assert log["group1/norm"] == pytest.approx(float(net.two.weight.detach().norm()))


def test_other_optimizers_and_closures():
    for make in (torch.optim.RMSprop, torch.optim.Adam):
        net = Net()
        optimizer = make(net.parameters(), lr=0.01, weight_decay=0.1)
        monitor = NormMonitor(optimizer, net)
        before = vector(net)
        backward(net, *batches(1)[0])
        optimizer.step()
        log = monitor.log()
        after = vector(net)
        cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
        assert log["group0/angle"] == pytest.approx(math.acos(cosine), rel=1e-7)
        assert log["group0/norm"] == pytest.approx(np.linalg.norm(after), rel=1e-12)
        assert math.isnan(log["group0/rho"]) and math.isnan(log["group0/effective_lr"])
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    monitor = NormMonitor(optimizer, net)

    def closure():
        backward(net, *batches(1)[0])
        return torch.zeros(())

    optimizer.step(closure)  # no gradient exists before the step
    total = math.sqrt(sum(float((p.grad**2).sum()) for p in net.parameters()))
    assert monitor.log()["group0/grad_norm"] == pytest.approx(total, rel=1e-12)


def test_a_closure_that_is_called_often_makes_one_step():
    net, grads = Net(), []
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4)
    monitor, before = NormMonitor(optimizer, net), vector(net)

    def closure():
        backward(net, *batches(1)[0])
        grads.append(math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters())))
        return cross_entropy(net(batches(1)[0][0]), batches(1)[0][1])

    optimizer.step(closure)
    log, after = monitor.log(), vector(net)
    assert monitor.steps == 1 and len(grads) > 2 and grads[0] != pytest.approx(grads[-1], rel=1e-3)
    assert log["group0/grad_norm"] == pytest.approx(grads[0], rel=1e-12)
    cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    assert log["group0/angle"] == pytest.approx(math.acos(cosine), rel=1e-7)


class Logged(torch.optim.SGD):
    """What many write: torch's step with something around it. Torch calls the hooks of both steps."""

    def step(self, closure=None):
        return super().step(closure)


class Decayed(torch.optim.SGD):
    """Another rule, around torch's step."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1.0 - group["lr"] * 0.5)


@pytest.mark.parametrize("kind", [torch.optim.SGD, Logged, Decayed])
def test_a_step_counts_once(kind):
    net, calls = Net(), []
    torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)  # from here on torch's own step has its hooks
    optimizer = kind(net.parameters(), lr=0.1, weight_decay=0.02)
    optimizer.register_step_post_hook(lambda *args: calls.append(args))
    monitor = NormMonitor(optimizer, net)
    for x, y in batches(20):
        before = vector(net)
        backward(net, x, y)
        grad = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))
        optimizer.step()
    log, after = monitor.log(), vector(net)
    assert len(calls) == (
        20 if kind is torch.optim.SGD else 40
    )  # twice, which is what there is to see through
    assert monitor.steps == 20 and log["group0/grad_norm"] == pytest.approx(grad, rel=1e-12)
    cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    assert log["group0/angle"] == pytest.approx(math.acos(cosine), rel=1e-7)
    assert log["group0/norm"] == pytest.approx(np.linalg.norm(after), rel=1e-12)
    assert math.isnan(log["group0/rho"]) == (kind is not torch.optim.SGD)  # a step of its own may be any rule


@pytest.mark.parametrize("past_the_instance", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, Logged])
def test_a_step_that_raised_counts_when_it_is_made(kind, past_the_instance):
    def run(failures):
        net = Net()
        optimizer = kind(net.parameters(), lr=0.1, weight_decay=0.02)
        monitor = NormMonitor(optimizer, net)
        for t, (x, y) in enumerate(batches(10)):

            def closure():
                raise MemoryError

            if t in failures:
                with pytest.raises(MemoryError):
                    kind.step(optimizer, closure) if past_the_instance else optimizer.step(closure)
            backward(net, x, y)
            optimizer.step()
        assert monitor.steps == 10
        return monitor.log()

    assert run((3, 4, 9)) == pytest.approx(run(()), rel=1e-14, nan_ok=True)


def test_accumulated_gradients_are_those_of_the_step():
    net = Net()
    optimizer = MAKERS["sgd"](net.parameters())
    monitor = NormMonitor(optimizer, net)
    for x, y in batches(3):
        cross_entropy(net(x), y).backward()  # no zero_grad
    total = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))
    optimizer.step()
    assert monitor.steps == 1 and monitor.log()["group0/grad_norm"] == pytest.approx(total, rel=1e-12)


class Wrapper(torch.optim.Optimizer):
    """As trainers wrap an optimizer: the hooks are those of what is inside."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure=None):
        self.optimizer.step(closure)


def test_a_wrapped_optimizer_is_the_one_inside():
    net = Net()
    optimizer = Wrapper(Wrapper(MAKERS["sgd"](net.parameters())))
    monitor = NormMonitor(optimizer, net)
    backward(net, *batches(1)[0])
    optimizer.step()
    assert monitor.steps == 1 and monitor.log()["group0/rho"] > 0


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_a_run_that_diverges_keeps_its_history(name):
    _, _, whole, *_ = watch(name, 20)
    before = whole.log()
    net, optimizer = whole.model, whole.optimizer
    for damage in (torch.inf, torch.nan):
        for p in net.parameters():
            p.grad.fill_(damage)
        optimizer.step()
        after = whole.log()
    assert math.isnan(after["group0/norm"]) and whole.steps == 22
    for column in ("rho", "grad_sq_norm", "effective_lr", "distance", "equilibrium_norm"):
        means = column in ("rho", "grad_sq_norm")
        assert (after[f"group0/{column}"] == before[f"group0/{column}"]) == means
        assert means or math.isnan(after[f"group0/{column}"])


def test_groups_without_tensors_and_of_zeros():
    zeros = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([{"params": []}, {"params": [zeros]}], lr=0.1, weight_decay=0.1)
    monitor = NormMonitor(optimizer)
    optimizer.step()
    log = monitor.log()
    assert log["group1/effective_lr"] == math.inf and log["group0/norm"] == 0.0
    alone = torch.optim.SGD([{"params": []}], lr=0.1)
    monitor = NormMonitor(alone)
    alone.step()
    assert monitor.log()["group0/norm"] == 0.0


def test_gradient_scaling_of_fused_optimizers():
    # GradScaler hands its factor to fused optimizers, which unscale and skip on their own.
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([w], lr=0.1, weight_decay=0.1, fused=True)
    monitor = NormMonitor(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    logs = []
    for loss in (w[1], torch.inf * w[0]):
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        logs.append(monitor.log())
    assert logs[0]["group0/grad_norm"] == 1.0
    assert logs[1] == logs[0] and monitor.steps == 2  # a skipped step says nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_and_sparse(dtype):
    table = nn.Embedding(10, 4, sparse=True)
    other = nn.Parameter(torch.ones(1000, dtype=dtype))
    optimizer = torch.optim.SGD([table.weight, other], lr=0.1)
    monitor = NormMonitor(optimizer)
    (table(torch.tensor([1, 1, 3])).sum() + other.sum().float()).backward()
    optimizer.step()
    log = monitor.log()
    assert log["group0.0/grad_norm"] == pytest.approx(math.sqrt(4 * (4 + 1)), rel=1e-6)
    assert log["group0.1/grad_norm"] == pytest.approx(math.sqrt(1000), rel=1e-5)
    assert log["group0.1/norm"] == pytest.approx(0.9 * math.sqrt(1000), rel=3e-3)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_state_goes_on(name):
    _, _, whole, *_ = watch(name, 40, every=2)
    net = Net()
    optimizer = MAKERS[name](net.parameters())
    monitor = NormMonitor(optimizer, net, every=2, horizon=10)
    for t, (x, y) in enumerate(batches(40)):
        if t == 15:
            state = json.loads(json.dumps(monitor.state_dict()))
            net, saved = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict())
            optimizer = MAKERS[name](net.parameters())
            optimizer.load_state_dict(saved)
            monitor = NormMonitor(optimizer, net, every=2, horizon=10)
            monitor.load_state_dict(state)
        backward(net, x, y)
        optimizer.step()
    assert monitor.log() == pytest.approx(whole.log(), rel=1e-12)
    fresh = NormMonitor(optimizer, net)
    with pytest.raises(ValueError, match="version must be 1, got 2"):
        fresh.load_state_dict({**state, "version": 2})
    with pytest.raises(
        ValueError, match=r"names must be those of the tensors, \['one.weight', .*got \['x'\]"
    ):
        fresh.load_state_dict({**state, "names": ["x"]})


def test_close():
    _, optimizer, monitor, *_ = watch("sgd", 3)
    log = monitor.log()
    monitor.close()
    optimizer.step()
    assert monitor.log() == log and monitor.steps == 3


def test_bad_input():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for change, message in (
        ({"every": 0}, "every must be >= 1, got 0"),
        ({"horizon": 1.5}, "horizon must be an integer, got 1.5"),
        ({"model": 3}, "model must be a torch.nn.Module or None, got int"),
        ({"exp_lr": net}, "exp_lr must be an ExpLR or None, got Net"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            NormMonitor(optimizer, **change)
    with pytest.raises(TypeError, match="optimizer must be a torch optimizer, got Net"):
        NormMonitor(net)
    with pytest.raises(TypeError, match="state must be the state_dict of a NormMonitor, got NoneType"):
        NormMonitor(optimizer).load_state_dict(None)
    other = torch.optim.SGD([{"params": list(net.parameters()), "scale_invariant": True}], lr=0.1)
    with pytest.raises(ValueError, match="exp_lr must be attached to the same optimizer"):
        NormMonitor(optimizer, exp_lr=ExpLR(other))
    with pytest.raises(ValueError, match="log must be read after a step"):
        NormMonitor(optimizer).log()
