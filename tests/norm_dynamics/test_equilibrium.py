"""Equilibrium: each closed form against the optimizer itself, run in noise, step by step."""

import math

import numpy as np
import pytest
import torch
from oracles_equilibrium import noise_run

from normcore.norm_dynamics.equilibrium import equilibrium

CASES = [
    ("sgd", 0.1, 0.2, 0.0),
    ("sgd", 0.5, 0.4, 0.0),  # h = 0.2: far from the small-step limit
    ("sgd", 0.1, 0.2, 0.9),
    ("sgd", 0.5, 0.5, 0.5),
    ("nesterov", 0.1, 0.2, 0.9),
    ("nesterov", 0.5, 0.5, 0.5),
    ("nesterov", 0.5, 0.4, 0.0),
    ("sgdw", 0.1, 0.2, 0.9),
    ("sgdw", 0.5, 0.5, 0.5),
    ("degree0", 0.1, 0.2, 0.0),
    ("degree0", 0.5, 0.5, 0.9),
]


@pytest.mark.parametrize(("kind", "lr", "wd", "m"), CASES)
def test_exact_where_noise_is_orthogonal(kind, lr, wd, m):
    run = noise_run(kind, lr, wd, m, size=3.0, steps=1500)
    state = equilibrium(lr, wd, m, grad_sq_norm=3.0, optimizer=kind)
    assert run.norm_sq[-1] == pytest.approx(state.norm**2, rel=1e-11)
    assert run.cosine[-1] == pytest.approx(math.cos(state.angle), abs=1e-12)
    assert run.norm_sq[0] != pytest.approx(state.norm**2, rel=0.1)  # it had a way to go
    power = 1 if kind == "degree0" else 2
    assert state.effective_lr == pytest.approx(
        lr / (1 if power == 1 else 1 - m) / state.norm**power, rel=1e-14
    )


@pytest.mark.parametrize(
    ("kind", "lr", "wd", "m"), [case for case in CASES if case[0] != "nesterov"][2:4] + CASES[4:8]
)
def test_the_small_step_limit_is_not_exact(kind, lr, wd, m):
    run = noise_run(kind, lr, wd, m, steps=1500)
    kept = 1.0 if kind == "degree0" else 1 - m
    first_order = math.sqrt(lr / kept / (2 * wd))  # |w|^2 = sqrt(lr_eff S / (2 wd))
    assert abs(run.norm_sq[-1] / first_order - 1) > 2e-3


@pytest.mark.parametrize(("kind", "m"), [("sgd", 0.9), ("nesterov", 0.9), ("sgdw", 0.9)])
def test_noise_that_is_orthogonal_on_average(kind, m):
    state = equilibrium(0.1, 0.1, m, grad_sq_norm=2.0, optimizer=kind)
    gaps = []
    for dim in (4, 160):
        run = noise_run(kind, 0.1, 0.1, m, size=2.0, dim=dim, steps=9000, orthogonal=False, start=state.norm)
        gaps.append(run.norm_sq[2000:].mean() / state.norm**2 - 1)
        # The identity between mean |g|^2 and mean |w|^2 holds in any dimension: S is |g|^2 |w|^2 at equilibrium.
        ratio = state.norm**4 / 2.0
        assert run.norm_sq[2000:].mean() / run.grad_sq[2000:].mean() == pytest.approx(ratio, rel=0.03)
    assert abs(gaps[1]) < 0.008 < 0.01 < gaps[0]  # a relative O(1/dim)


def torch_run(make, steps, dim=6, seed=0):
    """Norms and cosines of a torch optimizer's run in noise orthogonal to weights and momentum buffer."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.nn.Parameter(torch.randn(dim, generator=generator, dtype=torch.float64))
    optimizer = make([w])
    for _ in range(steps):
        with torch.no_grad():
            g = torch.randn(dim, generator=generator, dtype=torch.float64)
            buffer = optimizer.state[w].get("momentum_buffer") if w in optimizer.state else None
            basis = torch.linalg.qr(torch.stack([w] if buffer is None else [w, buffer], dim=1))[0]
            for _ in range(2):
                g = g - basis @ (basis.T @ g)
            w.grad = g / g.norm() / w.norm()
            before = w.detach().clone()
        optimizer.step()
    after = w.detach()
    return float(after.norm()), float(before @ after / before.norm() / after.norm())


@pytest.mark.parametrize("nesterov", [False, True])
def test_against_torch_itself(nesterov):
    options = dict(lr=0.2, weight_decay=0.3, momentum=0.8)
    norm, cosine = torch_run(lambda p: torch.optim.SGD(p, nesterov=nesterov, **options), 400)
    state = equilibrium(**options, optimizer="nesterov" if nesterov else "sgd")
    assert norm == pytest.approx(state.norm, rel=1e-11)
    assert cosine == pytest.approx(math.cos(state.angle), abs=1e-12)
    other = equilibrium(**options, optimizer="sgd" if nesterov else "nesterov")
    assert abs(math.cos(other.angle) - cosine) > 1e-3  # the two differ
    # Momentum forgotten, and coupled taken for decoupled.
    assert abs(equilibrium(0.2, 0.3).norm / norm - 1) > 0.3
    assert abs(equilibrium(**options, optimizer="sgdw").norm / norm - 1) > 0.3


def test_adamw_in_noise():
    generator = torch.Generator().manual_seed(0)
    dim = 2000
    options = dict(lr=0.02, weight_decay=1.0, betas=(0.9, 0.99))
    state = equilibrium(0.02, 1.0, optimizer="adamw", betas=(0.9, 0.99), dim=dim)
    w = torch.nn.Parameter(torch.randn(dim, generator=generator, dtype=torch.float64))
    optimizer = torch.optim.AdamW([w], fused=True, **options)
    norms, cosines = [], []
    for t in range(2500):
        with torch.no_grad():
            g = torch.randn(dim, generator=generator, dtype=torch.float64)
            w.grad = (g - w * (w @ g) / (w @ w)) / w.norm()
            before = w.detach().clone()
        optimizer.step()
        if t >= 1000:
            norms.append(float(w.detach().norm()))
            cosines.append(float(before @ w.detach() / before.norm() / w.detach().norm()))
    assert np.sqrt(np.mean(np.square(norms))) == pytest.approx(state.norm, rel=0.02)
    assert math.acos(np.mean(cosines)) == pytest.approx(state.angle, rel=0.02)
    # Its beta_1 is no momentum of the learning rate: the coupled forms are far off.
    coupled = equilibrium(0.02, 1.0, 0.9)
    assert (
        abs(coupled.angle / state.angle - 1) > 0.5 and coupled.relaxation_steps < 0.1 * state.relaxation_steps
    )
    forgotten = equilibrium(0.02, 1.0, optimizer="degree0", grad_sq_norm=dim / 19)
    assert abs(forgotten.norm / np.mean(norms) - 1) > 0.3 and abs(forgotten.angle / state.angle - 1) > 0.5


def test_scaling_exponents():
    base = equilibrium(1e-3, 1e-2, 0.9, grad_sq_norm=2.0)
    # (c lr, wd/c, sqrt(c) norm) is the same run.
    moved = equilibrium(4e-3, 2.5e-3, 0.9, grad_sq_norm=2.0)
    assert moved.norm == pytest.approx(2 * base.norm, rel=1e-14)
    assert (moved.angle, moved.effective_lr) == pytest.approx((base.angle, base.effective_lr), rel=1e-14)
    # S moves the norm as S^(1/4) and the effective rate as S^(-1/2), the angle not at all; S missing shows.
    larger = equilibrium(1e-3, 1e-2, 0.9, grad_sq_norm=32.0)
    assert larger.norm == pytest.approx(2 * base.norm) and larger.effective_lr == pytest.approx(
        base.effective_lr / 4
    )
    assert larger.angle == base.angle
    fine = [equilibrium(1e-3 * c, 1e-2, 0.9) for c in (1.0, 100.0)]
    assert math.log10(fine[1].angle / fine[0].angle) == pytest.approx(1.0, abs=1e-3)
    assert fine[0].relaxation_steps == pytest.approx(2500) and fine[1].relaxation_steps == pytest.approx(25)
    # To leading order momentum is a learning rate lr/(1-momentum), but turns by 1/(1+momentum) less a step.
    plain = equilibrium(1e-2, 1e-2, grad_sq_norm=2.0)
    assert base.norm == pytest.approx(plain.norm, rel=1e-4)
    assert (plain.angle / base.angle) ** 2 == pytest.approx(10 * 1.9, rel=1e-3)


def test_degree_zero_has_its_own_exponents():
    base = equilibrium(1e-3, 1e-2, optimizer="degree0", grad_sq_norm=4.0)
    assert base.norm == pytest.approx(math.sqrt(1e-3 * 4.0 / (2 * 1e-2)), rel=1e-4)
    assert base.relaxation_steps == pytest.approx(1 / (2e-5))
    assert equilibrium(1e-3, 1e-2, optimizer="degree0", dim=4) == base
    adam = equilibrium(1e-3, 1e-2, optimizer="adamw", dim=19)
    assert adam.norm == pytest.approx(
        equilibrium(1e-3, 1e-2, optimizer="adamw", grad_sq_norm=1.0, betas=(0.9, 0.5)).norm, rel=1e-14
    )
    assert adam.angle == pytest.approx(math.sqrt(2e-5 / 19), rel=1e-3)  # Kosson et al.: sqrt(2 h (1-b)/(1+b))


def test_kinds_of_numbers():
    one = equilibrium(0.1, 0.01, 0.9)
    assert all(type(x) is float for x in (one.norm, one.effective_lr, one.angle, one.relaxation_steps))
    lr, wd = np.array([0.1, 0.2]), np.array([[0.01], [0.02]])
    many = equilibrium(lr, wd, 0.9)
    assert many.norm.shape == (2, 2) and many.norm[0, 0] == pytest.approx(one.norm, rel=1e-15)
    tensors = equilibrium(torch.tensor(lr), torch.tensor(wd), 0.9)
    assert torch.allclose(tensors.angle, torch.tensor(many.angle), rtol=1e-14)
    assert equilibrium(torch.tensor(0.1), 0.01).norm.dtype == torch.float32
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    equilibrium(rate, 1e-6).norm.log().backward()
    assert float(rate.grad) * 0.1 == pytest.approx(0.25, rel=1e-6)  # d ln|w| / d ln lr


def test_frozen():
    with pytest.raises(AttributeError):
        equilibrium(0.1, 0.01).norm = 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -0.1}, "lr must be finite and > 0, got -0.1"),
        ({"lr": [0.1, 0.0]}, "lr must be finite and > 0, got 0.0"),
        ({"lr": float("inf")}, "lr must be finite and > 0, got inf"),
        ({"weight_decay": 0.0}, "weight_decay must be finite and > 0, got 0.0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": torch.tensor([0.5, -0.5])}, r"momentum must be in \[0, 1\), got -0.5"),
        ({"grad_sq_norm": 0.0}, "grad_sq_norm must be finite and > 0, got 0.0"),
        ({"lr": 300.0}, r"weight_decay must be such that lr\*weight_decay < 2\(1\+momentum\), got 0.01"),
        ({"lr": 210.0, "optimizer": "sgdw"}, r"such that lr\*weight_decay < 2, got 0.01"),
        (
            {"lr": 160.0, "momentum": 0.5, "optimizer": "nesterov"},
            r"lr\*weight_decay\*\(1\+2 momentum\) < 2\(1\+momentum\), got 0.01",
        ),
        ({"optimizer": "adam"}, r"optimizer must be one of \['adamw', .*\], got 'adam'"),
        ({"optimizer": "adamw", "momentum": 0.9}, "momentum must be 0 for 'adamw', .*, got 0.9"),
        (
            {"optimizer": "adamw", "betas": (0.9, 1.0)},
            r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)",
        ),
        ({"betas": (0.9, 0.99)}, "betas must be None unless optimizer is 'adamw'"),
        ({"dim": 3}, "dim must be None unless optimizer is 'adamw' or 'degree0', got 3"),
        ({"dim": 0, "optimizer": "adamw"}, "dim must be >= 1"),
        ({"optimizer": "adamw", "betas": (0.9, 0.9, 0.9)}, r"betas must be two numbers in \[0, 1\)"),
        (
            {"lr": 1e-200, "weight_decay": 1e-200},
            r"lr\*weight_decay neither vanishes nor overflows, got 1e-200",
        ),
        ({"lr": [0.1, 0.2], "momentum": [0.1] * 3}, r"must broadcast, got shapes \{'lr': \(2,\)"),
        ({"dim": 3, "optimizer": "adamw", "grad_sq_norm": 2.0}, "in place of grad_sq_norm, got 3 beside 2.0"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        equilibrium(**{"lr": 0.1, "weight_decay": 0.01, **change})


def test_adamw_without_memory_of_the_gradient():
    one = equilibrium(1e-3, 0.1, optimizer="adamw", betas=(0.0, 0.999), dim=4)
    assert one == equilibrium(1e-3, 0.1, optimizer="degree0", dim=4)


def test_bad_type():
    with pytest.raises(TypeError, match="lr must be a number or an array of numbers, got tensor"):
        equilibrium(torch.tensor(1j), 0.01)
    with pytest.raises(TypeError, match="betas must be a number or an array of numbers, got 'fast'"):
        equilibrium(0.1, 0.01, optimizer="adamw", betas="fast")
    with pytest.raises(TypeError, match="lr must be a number or an array of numbers, got 'fast'"):
        equilibrium("fast", 0.01)
