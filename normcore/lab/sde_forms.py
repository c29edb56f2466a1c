"""The equation of SGD on a normalized net in the weights, and in direction and norm, as torchsde takes them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]
Loss = Callable[[Tensor], Tensor]
Rate = float | Callable[[float], float]


class Form:
    """What both forms share: gradient and projected noise at a unit vector, in torchsde's words."""

    sde_type, noise_type = "ito", "general"

    def __init__(
        self, loss: Loss | None, factor: Callable[[Tensor], Tensor], lr: Rate, weight_decay: Rate
    ) -> None:
        """Keep the problem."""
        self.loss, self.factor, self.lr, self.weight_decay = loss, factor, lr, weight_decay

    def rates(self, t: Any) -> tuple[float, float]:
        """(eta, lambda) at time t."""
        return value(self.lr, float(t)), value(self.weight_decay, float(t))

    def columns(self, start: Tensor) -> int:
        """The number of independent noises."""
        return int(self.factor(unit(start)).shape[-1])

    def gradient(self, u: Tensor) -> Tensor:
        """The gradient of the loss at unit vectors."""
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


class Weights(Form):
    """The equation of W."""

    def encode(self, start: Tensor) -> Tensor:
        """The state at time 0."""
        return start

    def decode(self, states: Tensor) -> tuple[FloatArray, FloatArray, float]:
        """Direction, norm and defect."""
        norm = states.norm(dim=-1)
        return (states / norm[..., None]).double().numpy(), norm.double().numpy(), 0.0

    def f(self, t: Any, w: Tensor) -> Tensor:
        """The drift."""
        lr, weight_decay = self.rates(t)
        norm = w.norm(dim=1, keepdim=True)
        drift: Tensor = -lr * weight_decay * w - lr * self.gradient(w / norm) / norm
        return drift

    def g(self, t: Any, w: Tensor) -> Tensor:
        """The diffusion, (runs, d, k)."""
        diffusion: Tensor = self.rates(t)[0] * self.noise(unit(w)) / w.norm(dim=1)[:, None, None]
        return diffusion


class Direction(Form):
    """The equations of u and |W|^4; gamma is the latter over eta^2, which may depend on time."""

    def encode(self, start: Tensor) -> Tensor:
        """The state at time 0: u, then |W|^4."""
        return torch.cat([unit(start), start.norm(dim=1, keepdim=True) ** 4], dim=1)

    def decode(self, states: Tensor) -> tuple[FloatArray, FloatArray, float]:
        """Direction, norm and defect."""
        length = states[..., :-1].norm(dim=-1)
        u = states[..., :-1] / length[..., None]
        defect = float((length - 1).abs().max())
        return u.double().numpy(), (states[..., -1] ** 0.25).double().numpy(), defect

    def f(self, t: Any, y: Tensor) -> Tensor:
        """The drift of (u, |W|^4)."""
        lr, weight_decay = self.rates(t)
        u, fourth = unit(y[:, :-1]), y[:, -1:]
        gamma = fourth / lr**2
        trace = self.noise(u).square().sum(dim=(1, 2))[:, None]
        turn = -self.gradient(u) / gamma.sqrt() - trace / (2 * gamma) * y[:, :-1]
        return torch.cat([turn, -4 * lr * weight_decay * fourth + 2 * lr**2 * trace], dim=1)

    def g(self, t: Any, y: Tensor) -> Tensor:
        """The diffusion; |W|^4 has none."""
        lr, _ = self.rates(t)
        noise = self.noise(unit(y[:, :-1])) * (lr / y[:, -1].sqrt())[:, None, None]
        return torch.cat([noise, torch.zeros_like(noise[:, :1])], dim=1)


def unit(w: Tensor) -> Tensor:
    """The rows at length 1."""
    rows: Tensor = w / w.norm(dim=1, keepdim=True)
    return rows


def value(rate: Rate, t: float) -> float:
    """The rate at time t."""
    return float(rate(t) if callable(rate) else rate)


FORMS: dict[str, type[Weights] | type[Direction]] = {"direction": Direction, "weights": Weights}
"""Name of the form -> its system."""
