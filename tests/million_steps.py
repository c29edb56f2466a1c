"""A million steps in float32 under ExpLR, beside the run with weight decay, written down in NumPy in float64.

The loss of a step is -<c, theta> / |theta|: scale-invariant, and the direction of c is drawn anew for each step around
a fixed one. Two runs are pulled towards each other, so that they differ by their roundings and not by what chaos has
made of these. float32 ends at e^88; the weights of this run grow by e^0.01 a step.
test_optimizer takes 3,000 of the steps. This takes them all, and says every so often what it has found.
Usage: million_steps.py [STEPS].
"""

import math
import sys

import mpmath
import numpy as np
import torch

import normcore as nc

LR, DECAY, MOMENTUM = 0.1, 0.01, 0.9
DIM, NOISE = 16, 0.5
CHUNK = 1000
"""Steps between readings."""


def gradient(theta, c):
    """Of -<c, theta> / |theta|."""
    norm = math.sqrt(theta @ theta)
    direction = theta / norm
    return ((c @ direction) * direction - c) / norm


class Decay:
    """SGD with weight decay and momentum."""

    def __init__(self, start):
        self.theta, self.buffer = start.copy(), np.zeros_like(start)

    def step(self, c):
        self.buffer = MOMENTUM * self.buffer + gradient(self.theta, c) + DECAY * self.theta
        self.theta = self.theta - LR * self.buffer

    def state(self):
        """The direction and the logarithm of the norm."""
        theta = self.theta.astype(np.float64)
        norm = np.linalg.norm(theta)
        return theta / norm, math.log(norm)


class Exponential:
    """torch's SGD under ExpLR; the gradient is put where autograd puts it, in ordinary units as it does."""

    def __init__(self, start):
        self.weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
        groups = [{"params": [self.weight], "scale_invariant": True}]
        self.optimizer = torch.optim.SGD(groups, lr=LR, weight_decay=DECAY, momentum=MOMENTUM, foreach=False)
        self.exp_lr = nc.ExpLR(self.optimizer)
        self.seen, self.grad = self.weight.detach().numpy(), torch.empty(DIM)

    def step(self, c):
        self.grad.numpy()[:] = gradient(self.seen * self.exp_lr.scale(), c)
        self.weight.grad = self.grad
        self.optimizer.step()

    def state(self):
        norm = np.linalg.norm(self.seen.astype(np.float64))
        return self.seen / norm, math.log(norm * self.exp_lr.scale())


def gap(run, other):
    """Between their directions, and between the logarithms of their norms."""
    (u, a), (v, b) = run.state(), other.state()
    return np.array([np.linalg.norm(u - v), abs(a - b)])


def log_scale(steps):
    """Log x_t in closed form: x_0 = 1, x_1 = 1 - lr decay, x_(t+1) = (1 + momentum - lr decay) x_t - momentum x_(t-1)."""
    with mpmath.workdps(30):
        loss, momentum = mpmath.mpf(LR) * mpmath.mpf(DECAY), mpmath.mpf(MOMENTUM)
        half = (1 + momentum - loss) / 2
        root = mpmath.sqrt(half**2 - momentum)
        small, large = half - root, half + root
        share = (1 - loss - small) / (large - small)
        return float(steps * mpmath.log(large) + mpmath.log(share + (1 - share) * (small / large) ** steps))


def compare(steps, other=Exponential):
    """Every CHUNK steps (step, largest gaps so far of weight decay and of the other run, both in float32, the latter)."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(DIM).astype(np.float32)
    exact, plain, exponential = Decay(start.astype(np.float64)), Decay(start), other(start)
    gaps = np.zeros((2, 2))
    for t in range(CHUNK, steps + 1, CHUNK):
        targets = (NOISE * rng.standard_normal((CHUNK, DIM)) + np.eye(DIM)[0]).astype(np.float32)
        for c, same in zip(targets, targets.astype(np.float64), strict=True):
            exact.step(same)
            plain.step(c)
            exponential.step(c)
        gaps = np.maximum(gaps, [gap(plain, exact), gap(exponential, exact)])
        yield t, gaps, exponential


def main(steps):
    for t, gaps, run in compare(steps):
        if t % (50 * CHUNK) == 0 or t == steps:
            x, rate = run.exp_lr.log_scale(), run.exp_lr.log_lr()
            away = x - log_scale(t), rate - math.log(LR) + log_scale(t) + log_scale(t - 1)
            told = ", ".join(
                f"{name} {d:.2g} and {n:.2g}" for name, (d, n) in zip(("decay", "ExpLR"), gaps, strict=True)
            )
            size = f"rate 10^{rate / math.log(10):.0f}, weights 10^{-x / math.log(10):.0f}"
            print(
                f"{t} steps, {size}; gaps of direction and log norm: {told}; logs off by {away}", flush=True
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10**6)
