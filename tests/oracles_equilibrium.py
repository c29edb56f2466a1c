"""Naive runs of scale-invariant weights in gradient noise, and closed laws to compare with. Nothing here imports normcore."""

from dataclasses import dataclass

import numpy as np


@dataclass
class NoiseRun:
    """Squares along a run: |w_t|^2, |w_{t+1}-w_t|^2, |g_t|^2, <g_t, buffer before>, cos(w_t, w_{t+1})."""

    norm_sq: np.ndarray
    moved_sq: np.ndarray
    grad_sq: np.ndarray
    overlap: np.ndarray
    cosine: np.ndarray


def noise_gradient(rng, w, v, *, orthogonal, size, mean=None):
    """A random gradient at w: orthogonal to w, to v too if asked, with |g| = sqrt(size)/|w|, plus a mean direction."""
    g = rng.standard_normal(w.size)
    if mean is not None:
        g = g + mean
    u = w / np.sqrt(w @ w)
    side = v - u * (u @ v)
    length = np.sqrt(side @ side)
    side = side / length if orthogonal and length > 0 else 0.0 * side
    for _ in range(2):  # twice is enough
        g = g - u * (u @ g) - side * (side @ g)
    return g * np.sqrt(size / (g @ g) / (w @ w))


def noise_run(
    kind,
    lr,
    wd,
    m=0.0,
    *,
    size=1.0,
    dim=6,
    steps=2000,
    orthogonal=True,
    seed=0,
    start=1.0,
    mean=None,
    changes=None,
):
    """Run an optimizer in noise, written out. changes: step -> (lr, wd) from then on."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(dim)
    w *= start / np.linalg.norm(w)
    v = np.zeros(dim)
    rows = []
    for t in range(steps):
        lr, wd = (changes or {}).get(t, (lr, wd))
        drawn = noise_gradient(rng, w, v, orthogonal=orthogonal, size=size, mean=mean)
        g = drawn
        if kind == "sgd":
            v_new = m * v + g + wd * w
            new = w - lr * v_new
        elif kind == "nesterov":
            v_new = m * v + g + wd * w
            new = w - lr * (g + wd * w + m * v_new)
        elif kind == "sgdw":
            v_new = m * v + g
            new = (1 - lr * wd) * w - lr * v_new
        else:  # degree0: an update of mean square `size` with memory m
            g = g * np.linalg.norm(w) * np.sqrt(1 - m**2)
            v_new = m * v + g
            new = (1 - lr * wd) * w - lr * v_new
        rows.append(
            (w @ w, (new - w) @ (new - w), drawn @ drawn, drawn @ v, w @ new / np.sqrt((w @ w) * (new @ new)))
        )
        w, v = new, v_new
    return NoiseRun(*np.array(rows).T)


def fourth_power_ode(gamma, lr, wd, size, time, steps=20000):
    """Integrate d gamma/dt = -4 lr wd gamma + 2 size by Runge-Kutta."""
    h = time / steps

    def f(x):
        return -4 * lr * wd * x + 2 * size

    for _ in range(steps):
        a = f(gamma)
        b = f(gamma + h * a / 2)
        c = f(gamma + h * b / 2)
        d = f(gamma + h * c)
        gamma = gamma + h * (a + 2 * b + 2 * c + d) / 6
    return gamma


def gibbs_mean(weights, temperature, nodes=400):
    """The mean of sum_i weights_i u_i^2 on the sphere in 3 dimensions under exp(-that/temperature), by quadrature."""
    z, wz = np.polynomial.legendre.leggauss(nodes)
    phi = 2 * np.pi * (np.arange(nodes) + 0.5) / nodes
    r2 = 1 - z[:, None] ** 2
    energy = (
        weights[0] * r2 * np.cos(phi) ** 2 + weights[1] * r2 * np.sin(phi) ** 2 + weights[2] * z[:, None] ** 2
    )
    density = wz[:, None] * np.exp(-(energy - energy.min()) / temperature)
    return float((density * energy).sum() / density.sum())


def sgd_on_sphere(weights, sigma, lr, wd, steps, runs, rng, start):
    """SGD on sum_i weights_i w_i^2/|w|^2 in normal tangential noise: over the second half mean L, mean |w|^2 / mean |w|^-2, mean |grad L(u)|^2."""
    w = np.array(start, dtype=float)
    losses, square, inverse, signal = [], [], [], []
    for t in range(steps):
        r = np.linalg.norm(w, axis=1, keepdims=True)
        u = w / r
        loss = (weights * u**2).sum(axis=1, keepdims=True)
        noise = sigma * rng.standard_normal((runs, len(weights)))
        noise -= u * (u * noise).sum(axis=1, keepdims=True)
        gradient = 2 * (weights * u - loss * u)
        w = (1 - lr * wd) * w - lr * (gradient + noise) / r
        if t >= steps // 2:
            losses.append(loss.mean())
            square.append((r**2).mean())
            inverse.append((r**-2.0).mean())
            signal.append((gradient**2).sum(axis=1).mean())
    return float(np.mean(losses)), float(np.mean(square) / np.mean(inverse)), float(np.mean(signal))
