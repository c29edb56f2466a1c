"""Naive second implementations for the laboratory.

Nothing here imports normcore.
"""

import copy
import math

import numpy as np
import torch


def sgd_losses(net, batches, lr, weight_decay, momentum):
    """Train a copy with SGD written out tensor by tensor; per-step lists; losses and final net."""
    net = copy.deepcopy(net)
    weights = [p for p in net.parameters() if p.requires_grad]
    buffers = [torch.zeros_like(w) for w in weights]
    losses = []
    for t, (x, y) in enumerate(batches):
        log_p = torch.log_softmax(net(x), dim=1)
        loss = -sum(log_p[i, int(y[i])] for i in range(len(y))) / len(y)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
                buffers[i] = momentum[t] * buffers[i] + g + weight_decay[t] * w
                w -= lr[t] * buffers[i]
    return losses, net


def toy_loss(w, x, norm):
    """The batch loss of the toy at one weight vector (m,), example by example, x (B, m)."""
    scores = [sum(a * b for a, b in zip(row, w, strict=True)) for row in x]
    if norm == "sphere":
        size = math.sqrt(sum(a * a for a in w))
        scores = [s / size for s in scores]
    if norm == "batch":
        mean = sum(scores) / len(scores)
        variance = sum((s - mean) ** 2 for s in scores) / len(scores)
        scores = [(s - mean) / math.sqrt(variance) for s in scores]
    terms = [math.log1p(math.exp(-np.sign(row[0]) * s)) for row, s in zip(x, scores, strict=True)]
    return sum(terms) / len(x)


def numeric_gradient(f, w, h=1e-6):
    """Central differences."""
    gradient = np.zeros_like(w)
    for i in range(len(w)):
        e = np.zeros_like(w)
        e[i] = h
        gradient[i] = (f(w + e) - f(w - e)) / (2 * h)
    return gradient


def toy_run(lr, weight_decay, norm, steps, dim, batch_size, seed):
    """The toy in all its m dimensions, by torch's autograd; errors and norms, (steps+1,) each."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(dim, generator=generator, dtype=torch.float64)
    w /= w.norm()
    errors, norms = [], []
    for _ in range(steps + 1):
        norms.append(float(w.norm()))
        errors.append(math.acos(min(1.0, float(w[0]) / norms[-1])) / math.pi)
        x = torch.randn(batch_size, dim, generator=generator, dtype=torch.float64)
        w.requires_grad_(True)
        z = x @ w
        if norm == "sphere":
            z = z / w.norm()
        if norm == "batch":
            z = (z - z.mean()) / z.std(correction=0)
        loss = torch.nn.functional.softplus(-x[:, 0].sign() * z).mean()
        (gradient,) = torch.autograd.grad(loss, w)
        w = w.detach() - lr * (gradient + weight_decay * w.detach())
    return np.array(errors), np.array(norms)


def largest_gap(a, b):
    """Over readings, the largest Euclidean distance, number by number."""
    largest = 0.0
    for one, other in zip(a, b, strict=True):
        squares = [(p - q) ** 2 for p, q in zip(np.ravel(one), np.ravel(other), strict=True)]
        largest = max(largest, math.sqrt(sum(squares)))
    return largest


def line_slope(x, y):
    """Least squares in logs by the textbook formulas: slope and its standard error."""
    u, v = [math.log(a) for a in x], [math.log(b) for b in y]
    n, mu, mv = len(u), sum(u) / len(u), sum(v) / len(v)
    spread = sum((a - mu) ** 2 for a in u)
    k = sum((a - mu) * (b - mv) for a, b in zip(u, v, strict=True)) / spread
    rest = sum((b - mv - k * (a - mu)) ** 2 for a, b in zip(u, v, strict=True))
    return k, math.sqrt(rest / (n - 2) / spread)


def label_gap(one, other, classes):
    """L1 distance of two label laws at one reading, share by share; runs of inputs each."""
    inputs, total = len(one[0]), 0.0
    for i in range(inputs):
        for label in range(classes):
            shares = [sum(int(run[i]) == label for run in runs) / len(runs) for runs in (one, other)]
            total += abs(shares[0] - shares[1])
    return total / inputs


def share_right(families):
    """A judge's share of right answers in one pair, child by child; (2, children, d)."""
    right = 0.0
    for parent in (0, 1):
        for child, point in enumerate(families[parent]):
            left = [[x for i, x in enumerate(side) if i != child] for side in families]
            own, strange = (math.dist(point, np.mean(left[side], axis=0)) for side in (parent, 1 - parent))
            right += 1.0 if own < strange else 0.5 if own == strange else 0.0
    return right / (2 * len(families[0]))
