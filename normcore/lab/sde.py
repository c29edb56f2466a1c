"""The stochastic differential equation of SGD on a normalized net, integrated by torchsde.

    dW = -eta lambda W dt - eta grad L(W) dt + eta Sigma_W^(1/2) dB

in the weights, or in the two things that matter, the direction u = W/|W| and gamma = |W|^4/eta^2:

    du = -gamma^(-1/2) (grad L(u) dt - Sigma_u^(1/2) dB) - Tr(Sigma_u) u dt / (2 gamma)
    d gamma = -4 eta lambda gamma dt + 2 Tr(Sigma_u) dt

One unit of time is one step of SGD. Both are in the sense of Ito, and the noise does not commute, so the
integrator is Euler-Maruyama, of strong order 1/2. In the weights and with dt = 1 it is SGD itself with normal
noise of the same covariance; smaller dt shows what the limit changes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchsde
from torch import Tensor
from torch.nn.functional import normalize

from normcore.checks import (
    FloatArray,
    checked_choice,
    checked_count,
    checked_counts,
    checked_number,
    real_tensor,
    require_device,
    require_type,
)
from normcore.lab.measure import first_nan

Loss = Callable[[Tensor], Tensor]
Factor = Callable[[Tensor], Tensor]
Rate = Callable[[Any], float]


class _Form:
    """What both forms share: gradient and projected noise at unit vectors (runs, d), in torchsde's words."""

    sde_type, noise_type = "ito", "general"

    def __init__(self, loss: Loss | None, factor: Factor, lr: Rate, weight_decay: Rate) -> None:
        self.loss, self.factor, self.lr, self.weight_decay = loss, factor, lr, weight_decay

    def gradient(self, u: Tensor) -> Tensor:
        if self.loss is None:
            return torch.zeros_like(u)
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            gradient: Tensor = torch.autograd.grad(self.loss(u).sum(), u)[0]
            return gradient

    def noise(self, u: Tensor) -> Tensor:
        """P A, (runs, d, k)."""
        a = self.factor(u)
        return a - u[:, :, None] * torch.einsum("ri,rik->rk", u, a)[:, None, :]


class _Weights(_Form):
    """The equation of W: `f` is the drift, `g` the diffusion (runs, d, k)."""

    def encode(self, start: Tensor) -> Tensor:
        return start

    def decode(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Direction, norm, and by how much the direction's length was off 1."""
        norm = states.norm(dim=-1)
        return states / norm[..., None], norm, torch.zeros_like(norm)

    def f(self, t: Any, w: Tensor) -> Tensor:
        lr, weight_decay = self.lr(t), self.weight_decay(t)
        norm = w.norm(dim=1, keepdim=True)
        drift: Tensor = -lr * weight_decay * w - lr * self.gradient(w / norm) / norm
        return drift

    def g(self, t: Any, w: Tensor) -> Tensor:
        diffusion: Tensor = self.lr(t) * self.noise(normalize(w)) / w.norm(dim=1)[:, None, None]
        return diffusion


class _Direction(_Form):
    """The equations of (u, |W|^4); gamma is the latter over eta^2, which may depend on time."""

    def encode(self, start: Tensor) -> Tensor:
        return torch.cat([normalize(start), start.norm(dim=1, keepdim=True) ** 4], dim=1)

    def decode(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `_Weights`."""
        length = states[..., :-1].norm(dim=-1)
        return states[..., :-1] / length[..., None], states[..., -1] ** 0.25, (length - 1).abs()

    def f(self, t: Any, y: Tensor) -> Tensor:
        lr, weight_decay = self.lr(t), self.weight_decay(t)
        u, fourth = normalize(y[:, :-1]), y[:, -1:]
        gamma = fourth / lr**2
        trace = self.noise(u).square().sum(dim=(1, 2))[:, None]
        turn = -self.gradient(u) / gamma.sqrt() - trace / (2 * gamma) * y[:, :-1]
        return torch.cat([turn, -4 * lr * weight_decay * fourth + 2 * lr**2 * trace], dim=1)

    def g(self, t: Any, y: Tensor) -> Tensor:
        noise = self.noise(normalize(y[:, :-1])) * (self.lr(t) / y[:, -1].sqrt())[:, None, None]
        return torch.cat([noise, torch.zeros_like(noise[:, :1])], dim=1)  # |W|^4 has no noise


FORMS: dict[str, type[_Weights] | type[_Direction]] = {"direction": _Direction, "weights": _Weights}


@dataclass(frozen=True, eq=False)
class SDERun:
    """What `simulate_sde` returns, T times of R runs in d dimensions, NaN from where a run diverged.

    Attributes:
        step: times in steps, (T,).
        direction: u, (T, R, d), of length 1.
        norm: |W|, (T, R).
        gamma: |W|^4/lr^2, (T, R), with the learning rate of the step that starts at that time.
        defect: the largest deviation of |u| from 1 before it was normalized; 0 when the weights were integrated.

    """

    step: FloatArray
    direction: FloatArray
    norm: FloatArray
    gamma: FloatArray
    defect: float

    @property
    def diverged_at(self) -> list[int | None]:
        """For each run the first of the times at which it is no number, or None."""
        return [None if k is None else int(self.step[k]) for k in first_nan(self.norm)]

    @property
    def effective_lr(self) -> FloatArray:
        """lr/|W|^2 = gamma^(-1/2), (T, R)."""
        return np.asarray(self.gamma**-0.5)


def brownian_path(
    steps: int,
    shape: tuple[int, int],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> torchsde.BrownianInterval:
    """Make a Brownian path that runs with different dt can share; what was asked for stays in memory.

    Args:
        steps: its length.
        shape: (runs, k), k the number of independent noises (the columns of the noise factor).
        seed: of the path.
        dtype: of its values.
        device: where they are drawn, that of the `start` they move; every device has its own paths.

    Returns:
        A path: called with (s, t) it gives its increments, `shape`; the same ones whenever it is asked.

    Example:
        >>> path = brownian_path(4, (1, 2))
        >>> torch.allclose(path(0.0, 2.0), path(0.0, 1.0) + path(1.0, 2.0))
        True

    """
    length = float(checked_count("steps", steps))
    if len(checked_counts("shape", shape)) != 2:
        raise ValueError(f"shape must be (runs, k), got {tuple(shape)}")
    require_type("dtype", dtype, torch.dtype, "a torch.dtype")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating one, got {dtype}")
    require_device(device)
    checked_count("seed", seed, least=0)
    return torchsde.BrownianInterval(
        0.0, length, size=shape, dtype=dtype, device=device, entropy=seed, cache_size=None
    )


def simulate_sde(
    start: Tensor,
    loss: Loss | None,
    noise: float | Tensor | Callable[[Tensor], Tensor],
    *,
    lr: float | Rate,
    weight_decay: float | Rate,
    steps: int,
    form: str = "direction",
    dt: float = 1.0,
    every: int = 1,
    path: torchsde.BrownianInterval | None = None,
    seed: int = 0,
) -> SDERun:
    """Integrate the SDE of SGD for a scale-invariant loss and a given covariance of its gradient noise.

    Convention: time 1 is one step; coupled decay without momentum (pass lr/(1-momentum), good to leading order).

    Args:
        start: weights at time 0, (runs, d), or (d,) for one run.
        loss: from weights (runs, d) to losses (runs,), scale-invariant and differentiable; None for noise alone.
        noise: the covariance of the batch gradient at a unit vector u, as a factor A: Sigma_u = P A A^T P with P
            = 1 - u u^T (scale invariance leaves no noise along u). A float a stands for a times the identity; a
            tensor (d, k) for the same A everywhere; a function gives (runs, d, k) at unit vectors (runs, d).
        lr: eta, > 0: a float or a function of time.
        weight_decay: lambda, >= 0, likewise.
        steps: time to integrate.
        form: "direction" for (u, gamma), "weights" for W.
        dt: step of the integrator, 1/n for an integer n, so that it meets every whole time.
        every: keep every so many steps, a divisor of steps.
        path: a `brownian_path` to follow; by default one of `seed`.
        seed: of the path.

    Raises:
        ValueError: an argument breaks its condition, or the loss is not scale-invariant at the start.

    Example:
        >>> run = simulate_sde(torch.ones(1, 3).double(), None, 1.0, lr=0.1, weight_decay=1.0, steps=200, every=50)
        >>> run.gamma[:, 0].round(3).tolist()  # Tr(Sigma)/(2 lambda_e) = 2/(2 * 0.1)
        [900.0, 10.0, 10.0, 10.0, 10.0]

    Source: Li, Lyu & Arora (2020), arXiv 2010.02916; integrated by torchsde, Li et al. (2020), arXiv 2001.01328.

    """
    require_type("start", start, Tensor, "a tensor")
    start = torch.atleast_2d(start.detach())
    require_type("path", path, Callable | None, "a brownian_path or None")
    checked_count("seed", seed, least=0)
    _check(start, loss, steps, form, dt, every)
    rates = _rate("lr", lr, above=0.0), _rate("weight_decay", weight_decay, least=0.0)
    system = FORMS[form](loss, _factor(noise, start), *rates)
    if path is None:
        shape = (len(start), system.noise(normalize(start)).shape[-1])
        path = brownian_path(steps, shape, seed=seed, dtype=start.dtype, device=start.device)
    # The times stay on the CPU: torchsde compares them in every step, and on a GPU each comparison would wait.
    times = torch.arange(0, steps + 1, every, dtype=start.dtype)
    with torch.no_grad():
        states = torchsde.sdeint(system, system.encode(start), times, bm=path, dt=dt, method="euler")
    direction, norm, defect = (part.double().cpu().numpy() for part in system.decode(states))
    lost = np.logical_or.accumulate(~(np.isfinite(direction).all(axis=2) & np.isfinite(norm)))
    direction[lost] = norm[lost] = np.nan
    gamma = norm**4 / np.array([[rates[0](t)] for t in times]) ** 2
    return SDERun(times.double().numpy(), direction, norm, gamma, float(defect[~lost].max(initial=0.0)))


def _rate(name: str, rate: float | Rate, **limits: float) -> Rate:
    if callable(rate):
        return lambda t: checked_number(f"{name}(t)", rate(float(t)), **limits)
    fixed = checked_number(name, rate, **limits)
    return lambda t: fixed


def _factor(noise: Any, start: Tensor) -> Factor:
    if callable(noise):
        return noise  # type: ignore[no-any-return]
    a, dim = real_tensor("noise", noise).to(start.dtype), start.shape[1]
    if a.ndim == 0:
        a = a * torch.eye(dim, dtype=a.dtype, device=a.device)
    if a.ndim != 2 or a.shape[0] != dim or not torch.isfinite(a).all():
        raise ValueError(f"noise must be finite, a number or of shape ({dim}, k), got shape {tuple(a.shape)}")
    a = a.to(start.device)
    return lambda u: a.expand(u.shape[0], *a.shape)


def _check(start: Tensor, loss: Loss | None, steps: int, form: str, dt: float, every: int) -> None:
    if not start.is_floating_point():
        raise ValueError(f"start must be of floating-point numbers, got {start.dtype}")
    length = start.norm(dim=-1)
    if start.ndim != 2 or start.shape[1] < 2 or not ((length > 0) & length.isfinite()).all():
        need = "non-zero, finite weights of shape (runs, d >= 2)"
        raise ValueError(f"start must be {need}, got shape {tuple(start.shape)}")
    checked_choice("form", form, sorted(FORMS))
    require_type("loss", loss, Callable | None, "a function or None")
    if checked_count("steps", steps) % checked_count("every", every):
        raise ValueError(f"every must divide steps, got every={every!r}, steps={steps!r}")
    if checked_number("dt", dt, above=0) > 1 or abs(round(1 / dt) * dt - 1) > 1e-12:
        raise ValueError(f"dt must be 1/n with an integer n, got {dt!r}")
    if loss is None:
        return
    here, there = loss(start), loss(3.0 * start)
    if here.shape != start.shape[:1]:
        need = f"one value for each of {len(start)} runs"
        raise ValueError(f"loss must give {need}, got shape {tuple(here.shape)}")
    if not torch.allclose(here, there, rtol=1e-5, atol=1e-8):
        values = f"{float(here[0])!r} at w and {float(there[0])!r} at 3 w"
        raise ValueError(f"loss must be scale-invariant, got {values}")
