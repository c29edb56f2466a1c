"""Everything that takes tensors runs on a device, gives the CPU's numbers there and waits for the device seldom."""

import numpy as np
import pytest
import torch
from device import AVAILABLE, NAME, WAITS, Device
from torch.nn.functional import cross_entropy

import normcore as nc
from normcore import lab

pytestmark = pytest.mark.skipif(
    not AVAILABLE, reason="this torch has no Python back end for a simulated device"
)


@pytest.fixture(autouse=True)
def device():
    with Device():
        yield NAME


def batch(place, n=12):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 64, generator=g).to(place), (torch.arange(n) % 10).to(place)


def net(place, **options):
    return lab.mlp((64, 16, 10), **options).to(place)


def sgd(model, name="SGD", **options):  # tagged, as ExpLR wants it
    groups = [{"params": lab.trainable(model), "scale_invariant": True}]
    options = {"lr": 0.1, "weight_decay": 0.01} | ({"momentum": 0.9} if name == "SGD" else {}) | options
    return getattr(torch.optim, name)(groups, **options)


def numbers(value):
    """Tensors, arrays, dicts and sequences as one list of arrays on the host."""
    if isinstance(value, torch.Tensor):
        return [value.detach().cpu().numpy()]
    if isinstance(value, dict):
        return [part for key in sorted(value) for part in numbers(value[key])]
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in numbers(item)]
    return [np.asarray(value)]


def trained(place, name="SGD", exp_lr=False, probes=None, weight_decay=0.01, foreach=None, **options):
    model, digits = lab.cnn((4, 8)).to(place), lab.load_dataset("digits", device=place)
    optimizer = sgd(model, name, weight_decay=weight_decay, foreach=foreach)
    exp = nc.ExpLR(optimizer, model) if exp_lr else None
    batches, options = digits.batches(9, 8), {"every": 3, "progress": False} | options
    history = lab.train(model, optimizer, batches, exp_lr=exp, probes=probes or {}, **options)
    return history, model, optimizer


def losses(place, *args, **options):
    return trained(place, *args, **options)[0].loss


def monitored(place):
    model, digits = lab.cnn((4, 8)).to(place), lab.load_dataset("digits", device=place)
    optimizer = sgd(model)
    watch = nc.NormMonitor(optimizer, model)
    lab.train(model, optimizer, digits.batches(5, 8), progress=False)
    return watch.log()


def averaged(place):
    digits = lab.load_dataset("digits", device=place)
    test = digits.x_test[:40], digits.y_test[:40]
    history, model, _ = trained(place, probes={"swa": lab.SWA(*test), "test": lab.accuracy_on(*test)})
    return [history["swa"], history["test"], lab.loss_on(*test)(model)]


def converted(place):
    """A run under ExpLR, carried to the gauge of weight decay."""
    model, x, y = lab.cnn((4, 8)).to(place), *lab.load_dataset("digits", device=place).batches(1, 8)[0]
    optimizer = sgd(model)
    exp_lr = nc.ExpLR(optimizer, model)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    state = {"model": model, "optimizer": optimizer, "exp_lr": exp_lr}
    return nc.convert_checkpoint({k: v.state_dict() for k, v in state.items()}, "weight_decay")["model"]


def followed(place):
    schedule = nc.equivalent_schedule(0.1, 0.01, 0.9, steps=9)
    return losses(place, weight_decay=0.0, schedule=schedule)


def curvature(place):
    model, (x, y) = net(place), batch(place)
    return [
        nc.hessian_top_eigenvalue(model, cross_entropy, (x, y), max_matvecs=3).value,
        nc.hessian_top_eigenvalue(model, cross_entropy, (x, y), max_matvecs=3, chunk_size=6).value,
        nc.hessian_trace(model, cross_entropy, (x, y), matvecs=2),
        nc.ntk_top_eigenvalue(model, x).value,
        nc.ntk_top_eigenvalue(model, x, "lanczos", max_matvecs=3).value,
        nc.ntk_top_eigenvalue(lab.cnn((4, 8)).to(place), x.reshape(-1, 1, 8, 8), max_matvecs=3).value,
    ]


def invariance(place):
    model, (x, y) = net(place), batch(place)
    found = nc.scaling_symmetries(model, (x, y))
    report = nc.scale_invariance(model, cross_entropy, (x, y))
    return [
        [(v.defect, v.exact) for v in report.tensors.values()],
        found.exponents,
        list(nc.norm_input_degrees(model, [lab.trainable(model)], (x,)).values()),
    ]


def swept(place):
    """Nets made on the CPU, data on the device: each cell moves its own."""
    digits = lab.load_dataset("digits", device=place)

    def cell(lr):
        model = net(place)
        history = lab.train(model, sgd(model, lr=lr), digits.batches(3, 8), progress=False)
        return {"loss": history.loss}

    return lab.sweep(cell, lab.grid(lr=[0.1, 0.2]))["loss"]


def stack(place, **options):
    return lab.Stack((64, 8, 10), [0, 1], **options).to(place)


def descended(place, steps=4, options=None, **how):
    how = {"batch_size": 6, "probes": {"norm": lab.stack_norms}} | how
    run = lab.descend(
        stack(place, **(options or {})), batch(place), lr=[0.1, 1e30], weight_decay=0.1, steps=steps, **how
    )
    return [run.loss, run.records]


def kernel(place):
    nets = stack(place, parametrization="ntk")
    k = lab.wide_kernel(nets, batch(place)[0])
    return [k, lab.top_eigenpair(k, 3)[0], lab.wide_curvature(nets, batch(place)[0])]


class Carried:
    """A path of the CPU on the device: a device's own draws are other ones."""

    def __init__(self, path, place):
        self.path, self.place = path, place

    def __getattr__(self, name):
        return getattr(self.path, name)

    def __call__(self, *times):
        return self.path(*times).to(self.place)


def walked(place, noise=0.5, **options):
    start = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(3, 2).to(place)
    path = Carried(lab.brownian_path(4, (3, 2), seed=1), place)
    loss = lambda w: (w**4).sum(1) / (w**2).sum(1) ** 2  # noqa: E731
    run = lab.simulate_sde(start, loss, noise, lr=0.1, weight_decay=0.1, steps=4, path=path, **options)
    return list(vars(run).values())


RUNS = {
    "train": losses,
    "train, AdamW": lambda place: losses(place, "AdamW"),
    "train, ExpLR": lambda place: losses(place, exp_lr=True),
    "train, ExpLR of AdamW": lambda place: losses(place, "AdamW", exp_lr=True),
    "train, fused": lambda place: losses(place, exp_lr=True, foreach=True),
    "probes": lambda place: trained(place, probes={"norm": lab.weight_norm, "angle": lab.Angle()})[0].records,
    "SWA": averaged,
    "follow": followed,
    "convert_checkpoint": converted,
    "NormMonitor": monitored,
    "equilibrium": lambda place: nc.equilibrium(torch.tensor([0.1, 0.2], device=place), 5e-4, 0.9).angle,
    "invariance": invariance,
    "curvature": curvature,
    "crops": lambda place: lab.load_dataset("digits", device=place).batches(2, 8, crop=1)[1],
    "make_scale_invariant": lambda place: str(lab.make_scale_invariant(net(place), batch(place)[0])),
    "rounding_twin": lambda place: lab.rounding_twin(net(place)).state_dict(),
    "Stack": lambda place: stack(place).take([0, 1, 1]).scale_(2.0)(batch(place)[0]),
    "descend": descended,
    "descend, batch norm": lambda place: descended(place, options={"norm": "batch"}),
    "descend, without replacement": lambda place: descended(place, seeds=0, replacement=False),
    "descend, full batch": lambda place: descended(place, batch_size=None),
    "wide kernel": kernel,
    "simulate_sde, direction": walked,
    "simulate_sde, weights": lambda place: walked(place, form="weights"),
    "simulate_sde, factor": lambda place: walked(place, noise=torch.ones(2, 2, dtype=torch.float64)),
    "simulate_sde, field": lambda place: walked(place, noise=torch.diag_embed),
    "sweep": swept,
}


@pytest.mark.parametrize("name", RUNS)
def test_the_device_gives_the_numbers_of_the_cpu(name):
    for there, host in zip(numbers(RUNS[name](NAME)), numbers(RUNS[name]("cpu")), strict=True):
        np.testing.assert_array_equal(there, host)


def waits(steps, **options):
    model, digits = lab.cnn((4, 8)).to(NAME), lab.load_dataset("digits", device=NAME)
    batches, optimizer = digits.batches(steps, 8), sgd(model, **options.pop("optimizer", {}))
    if options.pop("exp_lr", False):
        nc.ExpLR(optimizer, model)
    if options.pop("monitor", False):
        nc.NormMonitor(optimizer, model)
    WAITS.clear()
    lab.train(model, optimizer, batches, every=10**6, progress=False, **options)
    return dict(WAITS)


@pytest.mark.parametrize(
    "options",
    [{}, {"exp_lr": True}, {"monitor": True}, {"optimizer": {"name": "AdamW"}, "exp_lr": True}],
    ids=["SGD", "ExpLR", "NormMonitor", "ExpLR of AdamW"],
)
def test_training_does_not_wait_for_the_device_between_readings(options):
    assert waits(12, **options) == waits(5, **options)


def test_a_descent_waits_once_a_step_for_its_losses():
    def count(steps):
        WAITS.clear()
        descended(NAME, steps=steps, probes={})
        return sum(WAITS.values())

    assert count(12) - count(5) == 7


def test_control_a_step_that_waits_is_seen():
    model = lab.cnn((4, 8)).to(NAME)
    looks = lambda t: bool(next(model.parameters()).sum() > 0)  # noqa: E731
    assert waits(12, before_step=looks) != waits(5, before_step=looks)


@pytest.mark.parametrize("exp_lr", [False, True])
def test_a_killed_run_goes_on_upon_the_device(exp_lr, tmp_path):
    class Killed(Exception):
        pass

    lives = [False, True]

    def kill(t):
        if t == 7 and lives.pop():
            raise Killed

    def probes():
        return {"angle": lab.Angle(), "norm": lab.weight_norm}

    folder = {"checkpoint": tmp_path / "run", "checkpoint_every": 3}
    whole = trained(NAME, exp_lr=exp_lr, probes=probes())[0]
    with pytest.raises(Killed):
        trained(NAME, exp_lr=exp_lr, probes=probes(), before_step=kill, **folder)
    resumed = trained(NAME, exp_lr=exp_lr, probes=probes(), before_step=kill, **folder)[0]
    assert np.array_equal(resumed.loss, whole.loss)
    assert np.array_equal(resumed["angle"], whole["angle"], equal_nan=True)


@pytest.mark.parametrize(
    "mix",
    [
        lambda there, here: there + here,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: here.add_(there.sum()),
        lambda there, here: here[there.long()],
        lambda there, here: there.numpy(),
        lambda there, here: there.normal_(generator=torch.Generator()),
    ],
)
def test_what_a_gpu_refuses_is_refused(mix):
    with pytest.raises((RuntimeError, TypeError)):
        mix(torch.zeros(3).to(NAME), torch.zeros(3))
