"""Intrinsic and effective learning rates, as numbers and read off optimizers."""

import math

import numpy as np
import pytest
import torch
from oracles_equilibrium import noise_run

from normcore.norm_dynamics.rates import FAMILIES, effective_lr, intrinsic_lr, look_up, rates_of
from normcore.sharded import norm_over_parts


def weights(*sizes):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in sizes]


def test_numbers():
    assert intrinsic_lr(0.1, 5e-4, 0.9) == pytest.approx(5e-4, rel=1e-15)
    assert intrinsic_lr(0.8, 5e-4) == pytest.approx(4e-4, rel=1e-15)
    assert effective_lr(0.1, 10.0, 0.9) == pytest.approx(0.01, rel=1e-15)
    assert intrinsic_lr(0.0, 0.1) == 0.0 == effective_lr(0.0, 1.0)
    lr = np.array([0.1, 0.2])
    assert intrinsic_lr(lr, 0.5).tolist() == [0.05, 0.1]
    assert intrinsic_lr(torch.tensor(lr), 0.5).tolist() == [0.05, 0.1]
    assert effective_lr(torch.tensor(lr), np.array([1.0, 2.0])).tolist() == [0.1, 0.05]


def test_the_effective_rate_is_what_turns_the_direction():
    # (c^2 lr, c norm) turns alike, and so does (lr, momentum) at lr/(1-momentum) in the long run.
    turned = []
    for lr, start, m in ((0.01, 1.0, 0.0), (0.04, 2.0, 0.0), (0.001, 1.0, 0.9), (0.01, 2.0, 0.0)):
        mean = np.array([5.0, 0, 0, 0, 0, 0])
        run = noise_run("sgd", lr, 0.0, m, start=start, steps=60, mean=mean, seed=1, orthogonal=False)
        turned.append((np.arccos(np.clip(run.cosine, -1, 1)).sum(), effective_lr(lr, start, m)))
    angles, rates = np.array(turned).T
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.0025])
    assert angles[1] == pytest.approx(angles[0], rel=1e-12)
    assert angles[3] < 0.5 * angles[0]


def test_of_an_optimizer():
    a, b, c = weights(3, 4, 5)
    groups = [{"params": [a, b], "weight_decay": 0.2}, {"params": [c], "lr": 0.5, "momentum": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.01)
    # Dampening multiplies what enters the buffer, decay included; without momentum torch ignores it.
    assert intrinsic_lr(optimizer) == pytest.approx([0.1 * 0.5 * 0.2 / 0.1, 0.5 * 0.01], rel=1e-14)
    norm_sq = float((a.norm() ** 2 + b.norm() ** 2).detach())
    assert effective_lr(optimizer) == pytest.approx(
        [0.5 / norm_sq, 0.5 / float(c.detach().norm()) ** 2], rel=1e-14
    )
    adam = torch.optim.AdamW([a, b], lr=0.1, weight_decay=0.2)
    assert intrinsic_lr(adam) == pytest.approx([0.02], rel=1e-15)  # no 1/(1-beta)
    assert effective_lr(adam) == pytest.approx([0.1 / math.sqrt(norm_sq)], rel=1e-14)  # degree 0: one power


def test_groups_of_zeros_and_of_complex_weights():
    zero, full = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.tensor([3 + 4j, 12j]))
    optimizer = torch.optim.SGD([{"params": [zero]}, {"params": [full]}], lr=0.5)
    assert effective_lr(optimizer) == [math.inf, pytest.approx(0.5 / 169)]
    optimizer.param_groups[0]["lr"] = 0.0
    assert effective_lr(optimizer)[0] == 0.0  # nothing moves
    assert effective_lr(torch.optim.AdamW([full], lr=0.5)) == pytest.approx([0.5 / 13])
    assert norm_over_parts([full.detach(), zero.detach()]) == pytest.approx(
        13.0
    )  # the same of sharded weights


def test_a_subclass_with_another_step_is_another_optimizer():
    class Renamed(torch.optim.SGD):
        pass

    class Other(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.mul_(1 - group["lr"] * group["weight_decay"])

    options = dict(lr=0.1, weight_decay=0.2)
    assert intrinsic_lr(Renamed(weights(2), **options)) == intrinsic_lr(
        torch.optim.SGD(weights(2), **options)
    )
    with pytest.raises(TypeError, match="with torch's own step, got Other"):
        intrinsic_lr(Other(weights(2), **options))


def test_dampening_is_a_smaller_learning_rate():
    def path(**options):
        (w,) = weights(5)
        optimizer = torch.optim.SGD([w], weight_decay=0.1, momentum=0.9, **options)
        rng = np.random.default_rng(0)
        optimizer.state[w]["momentum_buffer"] = torch.zeros_like(w)
        for _ in range(50):
            g = torch.tensor(rng.standard_normal(5))
            w.grad = (g - w.detach() * (w.detach() @ g) / (w.detach() @ w.detach())) / w.detach().norm()
            optimizer.step()
        return w.detach()

    assert torch.allclose(path(lr=0.2, dampening=0.75), path(lr=0.05), rtol=1e-12)
    assert not torch.allclose(path(lr=0.2, dampening=0.75), path(lr=0.2), rtol=1e-2)


def test_families():
    (w,) = weights(2)
    for optimizer, name in (
        (torch.optim.SGD([w], lr=0.1), "sgd"),
        (torch.optim.SGD([w], lr=0.1, momentum=0.5, nesterov=True), "nesterov"),
        (torch.optim.AdamW([w]), "adamw"),
        (torch.optim.Adam([w], weight_decay=0.1), None),  # coupled decay enters the second moment
        (torch.optim.RMSprop([w]), None),
    ):
        rates = rates_of(optimizer, optimizer.param_groups[0])
        assert (rates and rates.family) == name
    assert {name for name in FAMILIES if look_up(name).decoupled} == {"sgdw", "adamw", "degree0"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: intrinsic_lr(-0.1, 0.1), ValueError, "lr must be finite and >= 0, got -0.1"),
        (lambda: intrinsic_lr(0.1, -0.1), ValueError, "weight_decay must be finite and >= 0, got -0.1"),
        (lambda: intrinsic_lr(0.1, 0.1, 1.0), ValueError, r"momentum must be in \[0, 1\), got 1.0"),
        (lambda: intrinsic_lr(0.1), TypeError, "weight_decay must be a number .*, got None"),
        (lambda: effective_lr(0.1), TypeError, "norm must be a number .*, got None"),
        (lambda: effective_lr(0.1, 0.0), ValueError, "norm must be finite and > 0, got 0.0"),
        (lambda: effective_lr(float("nan"), 1.0), ValueError, "lr must be finite and >= 0, got nan"),
        (lambda: effective_lr(0.1, 1.0, -0.5), ValueError, r"momentum must be in \[0, 1\), got -0.5"),
        (lambda: intrinsic_lr("x", 0.1), TypeError, "lr must be a number"),
        (lambda: intrinsic_lr(torch.optim.RMSprop(weights(2))), TypeError, "SGD or AdamW .*, got RMSprop"),
        (lambda: effective_lr(torch.optim.Adam(weights(2))), TypeError, "SGD or AdamW .*, got Adam"),
        (lambda: intrinsic_lr(torch.optim.SGD(weights(2)), 0.1), TypeError, "weight_decay must not be given"),
        (lambda: effective_lr(torch.optim.SGD(weights(2)), 1.0), TypeError, "norm must not be given"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
