"""The schedule ahead against the scheduler itself, and the effective rate against closed forms."""

import copy

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from normcore.doctor.findings import Group, changes, course, rates_ahead
from normcore.norm_dynamics.equilibrium import equilibrium, relaxation

STEPS = 40


def sgd(**options):
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(3))]},
        {"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.02},
    ]
    return torch.optim.SGD(groups, **{"lr": 0.3, "weight_decay": 0.01, "momentum": 0.9} | options)


def sequence(optimizer):
    first = schedulers.LinearLR(optimizer, 0.01, total_iters=5)
    return schedulers.SequentialLR(
        optimizer, [first, schedulers.CosineAnnealingLR(optimizer, 35)], milestones=[5]
    )


MAKERS = {
    "steps": lambda o: schedulers.MultiStepLR(o, [10, 30]),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, STEPS),
    "one cycle": lambda o: schedulers.OneCycleLR(o, [0.5, 0.1], total_steps=STEPS + 1),
    "cyclic": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=7),
    "lambda": lambda o: schedulers.LambdaLR(o, lambda t: 0.9**t),
    "sequence": sequence,
    "chain": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.1, 4), schedulers.ExponentialLR(o, 0.9)]
    ),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 8),
}


def read(optimizer):
    return [[g["lr"], g["weight_decay"], g["momentum"]] for g in optimizer.param_groups]


@pytest.mark.parametrize("every", [1, 6])
@pytest.mark.parametrize("name", MAKERS)
def test_what_the_scheduler_will_do_without_touching_it(name, every):
    optimizer = sgd()
    scheduler = MAKERS[name](optimizer)
    for _ in range(3):  # half way already
        optimizer.step()
        scheduler.step()
    before = copy.deepcopy((scheduler.state_dict(), read(optimizer), list(vars(optimizer))))
    ahead = rates_ahead(optimizer, scheduler, STEPS - 4, every)
    assert (scheduler.state_dict(), read(optimizer), list(vars(optimizer))) == before
    real = []
    for t in range(STEPS - 4):
        real.append(read(optimizer))
        optimizer.step()
        if (t + 1) % every == 0:
            scheduler.step()
    np.testing.assert_array_equal(ahead, np.array(real).transpose(1, 0, 2))
    assert np.ptp(ahead[:, :, 0]) > 0


def test_without_a_scheduler_or_with_one_that_waits_for_a_metric():
    optimizer = sgd(dampening=0.5)
    for scheduler in (None, schedulers.ReduceLROnPlateau(optimizer)):
        ahead = rates_ahead(optimizer, scheduler, 5, 1)
        assert ahead.shape == (2, 5, 3) and np.ptp(ahead, axis=1).max() == 0
        assert ahead[:, 0].tolist() == [[0.15, 0.01, 0.9], [0.01, 0.01, 0.9]]  # dampening folded in
    other = torch.optim.RMSprop([torch.nn.Parameter(torch.ones(2))], lr=0.1, weight_decay=0.2)
    assert rates_ahead(other, None, 2, 1)[0, 1, :2].tolist() == [0.1, 0.2]
    tensor = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(0.5))
    assert rates_ahead(tensor, schedulers.ExponentialLR(tensor, 0.5), 3, 1)[0, :, 0].tolist() == [
        0.5,
        0.25,
        0.125,
    ]
    assert float(tensor.param_groups[0]["lr"]) == 0.5


def table(lr, weight_decay=0.01, momentum=0.0):
    lr = np.asarray(lr, dtype=float)
    return np.stack([lr, weight_decay + 0 * lr, momentum + 0 * lr], axis=1)


def test_a_change_is_a_drop_and_not_a_slope():
    assert changes(table([0.1] * 5 + [0.01] * 5)) == [5]
    assert changes(table(np.full(12, 0.1), np.repeat([0.1, 0.2, 0.02], 4))) == [4, 8]
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(1000) / 1000))
    assert changes(table(cosine)) == [] and changes(table(np.tile(cosine, 2))) == [1000]  # warm restart
    assert changes(table(np.linspace(0, 1, 50))) == []  # warm-up from 0
    assert changes(table([0.1])) == []


BEFORE = {"lr": 0.1, "weight_decay": 0.02}


@pytest.mark.parametrize(
    ("family", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("nesterov", 0.5), ("adamw", 0.9)]
)
@pytest.mark.parametrize(("r", "q"), [(0.1, 1.0), (1.0, 0.1), (0.1, 10.0), (4.0, 1.0)])
def test_a_change_at_equilibrium_follows_the_closed_form(family, momentum, r, q):
    kept = 1.0 if family == "adamw" else 1 - momentum
    rates = np.repeat([[0.1, 0.02, momentum], [0.1 * r, 0.02 * q, momentum]], [10, 500], axis=0)
    rate, target = course(rates, family, 0.1 / kept / (2 * 0.02))
    options = {"optimizer": family, "momentum": 0.0 if family == "adamw" else momentum}
    law = relaxation(np.arange(500), ratio_lr=r, ratio_wd=q, **BEFORE, **options)
    np.testing.assert_allclose(rate[10:] / rate[9], law, rtol=1e-9)
    assert rate[9] == pytest.approx(target[9], rel=1e-12) and target[-1] / target[0] == pytest.approx(
        (r * q) ** 0.5
    )


@pytest.mark.parametrize(
    ("family", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("nesterov", 0.9), ("adamw", 0.9)]
)
def test_in_the_end_it_is_the_equilibrium_of_the_exact_recursion(family, momentum):
    rates = np.repeat([[1e-3, 0.02, momentum]], 300_000, axis=0)
    rate, target = course(rates, family, 0.05)
    if family == "adamw":
        exact = equilibrium(1e-3, 0.02, optimizer=family, dim=7)
        assert rate[-1] == pytest.approx(exact.effective_lr * 7**0.5, rel=1e-3)
    else:
        exact = equilibrium(1e-3, 0.02, momentum, optimizer=family, grad_sq_norm=7.0)
        assert rate[-1] == pytest.approx(exact.effective_lr * 7**0.5, rel=1e-3)
    assert target[-1] == pytest.approx(rate[-1], rel=1e-3)


def test_without_weight_decay_the_norm_grows():
    rate, target = course(table([0.1] * 1000, 0.0), "sgd", 1.0)
    np.testing.assert_allclose(rate, 0.1 / np.sqrt(1 + 2 * 0.01 * np.arange(1000)), rtol=1e-12)
    assert not target.any()


def group(**changed):
    """A group of one scale-free tensor."""
    names = {"alone": ["w"], "jointly": [], "inert": [], "undetermined": [], "rest": []}
    own = {
        "label": "g",
        "names": names,
        "family": "sgd",
        "rates": table([0.1] * 100, 0.02, 0.9),
        "betas": None,
    }
    return Group(**own | {"units": [(2.0, 3.0, 50)]} | changed)


def planned(g, batch=1.0, epochs=1.0):
    return g.planned(batch, epochs).value


def state(new, old=None, **options):
    return equilibrium(new["lr"], new["weight_decay"], **options)


@pytest.mark.parametrize("batch", [0.25, 2.0, 4.0])
def test_a_larger_batch_keeps_noise_and_time_constants_sgd(batch):
    old, new = planned(group()), planned(group(), batch)
    before = state(old, momentum=0.9, grad_sq_norm=3.0)
    after = state(new, momentum=0.9, grad_sq_norm=3.0 / batch)  # S is noise: it falls with the batch
    assert after.effective_lr / before.effective_lr == pytest.approx(batch, rel=2e-3)  # temperature e/B kept
    assert new["steps"] / after.relaxation_steps == pytest.approx(old["steps"] / before.relaxation_steps)
    unscaled = state({**old, "lr": 0.1}, momentum=0.9, grad_sq_norm=3.0 / batch)
    assert abs(unscaled.effective_lr / before.effective_lr / batch - 1) > 0.2  # doing nothing would not


def test_a_larger_batch_adamw():
    g = group(family="adamw", rates=table([1e-3] * 100, 0.1, 0.9), betas=(0.9, 0.999))
    new = planned(g, 4.0)
    assert new["betas"] == pytest.approx([0.6, 0.996]) and new["steps"] == 25
    before = equilibrium(1e-3, 0.1, optimizer="adamw", dim=50)
    after = equilibrium(new["lr"], new["weight_decay"], optimizer="adamw", dim=50)
    assert after.effective_lr / before.effective_lr == pytest.approx(
        2.0, rel=5e-3
    )  # drift e sqrt(B) steps kept
    assert after.relaxation_steps / before.relaxation_steps == pytest.approx(1 / 4)
    assert after.norm == pytest.approx(before.norm, rel=5e-3)
    assert planned(g, 16.0)["betas"][0] == 0.0 and "the rule ends" in g.planned(16.0, 1.0).text


def test_longer_runs_keep_the_time_constants_and_say_what_they_move():
    new = planned(group(), epochs=2.0)
    assert new == {"lr": 0.1, "weight_decay": 0.01, "steps": 200}
    mixed = group(names={"alone": ["w"], "jointly": [], "rest": ["head"]})
    assert "nc.param_groups" in mixed.planned(1.0, 2.0).text
    assert "nc.param_groups" not in group().planned(1.0, 2.0).text
    plain = group(names={"alone": [], "jointly": [], "rest": ["head"]}, units=[])
    assert planned(plain, epochs=2.0)["weight_decay"] == 0.02  # a penalty is a penalty
    assert group(family=None).planned(2.0, 1.0).level == "note"


def test_several_tensors_settle_at_the_root_of_their_sum_of_squares():
    units = [(1.0, 3.0, 10), (5.0, 0.2, 4), (2.0, 40.0, 7)]
    alone = [equilibrium(0.1, 0.02, 0.9, grad_sq_norm=s).norm for _, s, _ in units]
    assert group(units=units).equilibrium().norm == pytest.approx(
        np.sqrt(np.sum(np.square(alone))), rel=1e-12
    )
    adamw = {"family": "adamw", "betas": (0.8, 0.99)}
    alone = [equilibrium(0.1, 0.02, optimizer="adamw", betas=(0.8, 0.99), dim=n).norm for _, _, n in units]
    assert group(units=units, **adamw).equilibrium().norm == pytest.approx(np.sqrt(np.sum(np.square(alone))))
