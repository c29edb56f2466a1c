"""The two forms of the equation: one is the other under Ito's formula, derived here by automatic differentiation."""

import pytest
import torch
from torch.nn.functional import normalize

from normcore.lab.sde import FORMS, _rate

LR, WD, DIM = 0.3, 0.2, 4
TILT = torch.tensor(
    [[1.0, 0.3, 0, 0], [0, 2.0, 0.5, 0], [0, 0, 0.5, 0.1], [0.2, 0, 0, 1.5]], dtype=torch.float64
)


def loss(w):
    scale = torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=w.dtype)
    return (scale * w**2).sum(1) / (w**2).sum(1)


def factor(u):
    return TILT * (1.0 + u[:, :1, None] ** 2)


def form(name, lr=LR, weight_decay=WD):
    return FORMS[name](loss, factor, _rate("lr", lr), _rate("weight_decay", weight_decay))


def systems(lr=LR, weight_decay=WD):
    return [form(name, lr, weight_decay) for name in ("weights", "direction")]


def weights():
    torch.manual_seed(0)
    return torch.randn(5, DIM, dtype=torch.float64)


def encode(w):
    """(u, |W|^4) of one weight vector."""
    return torch.cat([w / w.norm(), (w @ w)[None] ** 2])


def test_direction_and_norm_follow_from_the_weights_by_ito():
    plain, polar = systems()
    w = weights()
    state = polar.encode(w)
    drift, diffusion = plain.f(0.0, w), plain.g(0.0, w)
    for i in range(len(w)):
        jacobian = torch.func.jacrev(encode)(w[i])
        hessian = torch.func.hessian(encode)(w[i])
        ito = jacobian @ drift[i] + 0.5 * torch.einsum("aij,ik,jk->a", hessian, diffusion[i], diffusion[i])
        torch.testing.assert_close(polar.f(0.0, state)[i], ito, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(polar.g(0.0, state)[i], jacobian @ diffusion[i], rtol=1e-10, atol=1e-10)
        # Negative control: without Ito's second-order term the drifts differ.
        assert (polar.f(0.0, state)[i] - jacobian @ drift[i]).abs().max() > 1e-3


def test_weight_decay_acts_on_the_norm_alone():
    w = weights()
    one, other = (form("direction", LR, weight_decay) for weight_decay in (0.0, 5.0))
    state = one.encode(w)
    gap = one.f(0.0, state) - other.f(0.0, state)
    assert gap[:, :-1].abs().max() < 1e-14 and gap[:, -1].min() > 0.1


def test_eta_and_lambda_enter_as_their_product():
    # d gamma = -4 lr wd gamma + 2 Tr Sigma, gamma = |W|^4/lr^2: (c lr, wd/c) at |W| * sqrt(c) is the same.
    w, c = weights(), 7.0
    one, other = (form("direction", *rates) for rates in ((LR, WD), (c * LR, WD / c)))
    f, g = one.f(0.0, one.encode(w)), one.g(0.0, one.encode(w))
    f_c, g_c = (h(0.0, other.encode(w * c**0.5)) for h in (other.f, other.g))
    torch.testing.assert_close(f_c[:, :-1], f[:, :-1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(f_c[:, -1] / (c * LR) ** 2, f[:, -1] / LR**2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(g_c, g, rtol=1e-12, atol=1e-12)


def test_noise_is_tangential_and_scales_inversely():
    plain, _ = systems()
    w = weights()
    along = torch.einsum("ri,rik->rk", normalize(w, dim=1), plain.g(0.0, w))
    assert along.abs().max() < 1e-14
    torch.testing.assert_close(plain.g(0.0, 3 * w), plain.g(0.0, w) / 3, rtol=1e-12, atol=1e-14)
    gradient = torch.func.jacrev(lambda v: loss(v).sum())(normalize(w, dim=1))
    torch.testing.assert_close(plain.gradient(normalize(w, dim=1)), gradient)


def test_rates_may_depend_on_time():
    plain, _ = systems(lr=lambda t: 0.1 * (1 + t), weight_decay=lambda t: 0.5)
    assert plain.lr(2.0) == pytest.approx(0.3) and plain.weight_decay(torch.tensor(2.0)) == 0.5
    w = weights()
    fixed, _ = systems(lr=0.3, weight_decay=0.5)
    torch.testing.assert_close(plain.f(2.0, w), fixed.f(0.0, w))


def test_decode_inverts_encode():
    w = weights()
    for system in systems():
        direction, norm, defect = system.decode(system.encode(w)[None])
        torch.testing.assert_close((direction * norm[..., None])[0], w, rtol=1e-12, atol=1e-12)
        assert defect.max() < 1e-15
    stretched = systems()[1].encode(w)
    stretched[:, :-1] *= 1.25
    torch.testing.assert_close(
        systems()[1].decode(stretched[None])[2], torch.full((1, 5), 0.25, dtype=torch.float64)
    )
