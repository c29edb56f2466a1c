"""Second, naive implementations that the tests compare with. Nothing here imports normcore.

The scale-invariant loss is L_t(w) = u'A_t u / 2 + b_t'u with u = w/|w| and fresh random A_t, b_t at every step; its gradient is a closed form.
"""

from dataclasses import dataclass

import mpmath
import numpy as np


@dataclass
class RandomLoss:
    """A stream of scale-invariant losses on R^d."""

    dim: int = 12
    seed: int = 0

    def gradient(self, w, t):
        """The gradient of L_t at w: (1/|w|) (I - uu') (A_t u + b_t)."""
        rng = np.random.default_rng((self.seed, t))
        matrix = rng.standard_normal((self.dim, self.dim))
        vector = rng.standard_normal(self.dim)
        norm = np.linalg.norm(w)
        u = w / norm
        inner = 0.5 * (matrix + matrix.T) @ u + vector
        return (inner - u * (u @ inner)) / norm

    def start(self):
        """Initial weights and a non-zero buffer."""
        rng = np.random.default_rng((self.seed, 10**6))
        return rng.standard_normal(self.dim), 0.1 * rng.standard_normal(self.dim)


def at(value, t):
    """Entry t of an array, or the scalar itself."""
    return float(value) if np.ndim(value) == 0 else float(value[t])


def decayed_run(
    loss,
    steps,
    lr,
    weight_decay,
    momentum=0.0,
    *,
    dampening=0.0,
    nesterov=False,
    decoupled=False,
    buffer=None,
):
    """SGD with weight decay, written out; returns the weights and buffers at t = 0, ..., steps."""
    w, v = loss.start()
    v = np.zeros_like(w) if buffer is None else buffer
    weights, buffers = [w], [v]
    for t in range(steps):
        eta, lam, gamma, tau = (at(a, t) for a in (lr, weight_decay, momentum, dampening))
        g = loss.gradient(w, t)
        if not decoupled:
            g = g + lam * w
        v = gamma * v + (1 - tau) * g
        update = g + gamma * v if nesterov else v
        w = (1 - eta * lam) * w - eta * update if decoupled else w - eta * update
        weights.append(w)
        buffers.append(v)
    return np.array(weights), np.array(buffers)


def free_run(
    loss,
    lr,
    momentum=0.0,
    *,
    dampening=0.0,
    nesterov=False,
    before=None,
    after=None,
    corrections=None,
    buffer=None,
):
    """SGD without weight decay at the rates lr, with gains on the buffer and corrections."""
    w, v = loss.start()
    v = np.zeros_like(w) if buffer is None else buffer
    weights, buffers = [w], [v]
    for t in range(len(lr)):
        v = v + (corrections or {}).get(t, 0.0) * w
        v = v * (1.0 if before is None else before[t])
        g, gamma = loss.gradient(w, t), at(momentum, t)
        v = gamma * v + (1 - at(dampening, t)) * g
        w = w - lr[t] * (g + gamma * v if nesterov else v)
        v = v * (1.0 if after is None else after[t])
        weights.append(w)
        buffers.append(v)
    return np.array(weights), np.array(buffers)


def directions(weights):
    """Unit vectors of the rows."""
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def direction_gap(a, b):
    """The largest distance between the unit vectors of two runs."""
    return float(np.abs(directions(a) - directions(b)).max())


def scalar_run(lr, weight_decay, momentum, dampening, steps, digits=60):
    """(log lr~_t, log x_t) of SGD with coupled decay by the x, p recursion in `digits`-digit arithmetic; the
    original numbers are taken as exact."""
    with mpmath.workdps(digits):
        x, p = mpmath.mpf(1), mpmath.mpf(0)
        log_lr, log_x = [], [mpmath.mpf(0)]
        for t in range(steps):
            eta, lam, gamma, tau = (mpmath.mpf(at(a, t)) for a in (lr, weight_decay, momentum, dampening))
            p = gamma * p + (1 - tau) * lam * x
            x_next = x - eta * p
            if x_next <= 0:
                raise ArithmeticError(f"x turns non-positive at step {t}")
            log_lr.append(mpmath.log(eta / (x * x_next)))
            x = x_next
            log_x.append(mpmath.log(x))
        return log_lr, log_x


def paper_recursion(lr, weight_decay, momentum, steps):
    """log lr~_t by Theorem 2.13 as the paper writes it: alpha_t from lr ratios, P_t = prod 1/alpha_i, alpha_{-1} = alpha_0 = 1."""
    alpha, log_p, log_ps = 1.0, 0.0, [0.0]
    for t in range(1, steps + 1):
        ratio = at(lr, t - 1) / at(lr, t - 2) if t >= 2 else 1.0
        alpha = 1 - at(lr, t - 1) * at(weight_decay, t - 1) + ratio * momentum * (1 - 1 / alpha)
        log_p -= np.log(alpha)
        log_ps.append(log_p)
    return np.array([np.log(at(lr, t)) + log_ps[t] + log_ps[t + 1] for t in range(steps)])


def texp_recursion(phases, weight_decay, momentum):
    """TEXP's rates by the product rule of Theorem 2.12, phase by phase."""
    alphas = [np.roots([1, -(1 + momentum - lr * weight_decay), momentum]).real.max() for lr, _ in phases]
    rates, rate = [], phases[0][0] / alphas[0]
    for i, (lr, steps) in enumerate(phases):
        for s in range(steps):
            if s:
                rate *= alphas[i] ** -2
            elif i:
                rate *= lr / phases[i - 1][0] / (alphas[i] * alphas[i - 1])
            rates.append(rate)
    return np.array(rates)
