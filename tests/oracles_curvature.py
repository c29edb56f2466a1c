"""Plain re-implementations for curvature and the catapult: weights and autograd, dense matrices, no package code."""

import copy

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def descend(u, v, x, y, lr, steps):
    """Gradient descent by autograd on f = n^{-1/2} v.(u x), loss (1/2m) sum (f-y)^2, all in float64; yields
    outputs and the dense NTK over m at every step."""
    u, v, x, y = (torch.as_tensor(a, dtype=torch.float64) for a in (u, v, x, y))
    u, v = u.clone().requires_grad_(), v.clone().requires_grad_()
    for t in range(steps + 1):
        f = x @ (u.T @ v) / len(v) ** 0.5
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(fa, (u, v), retain_graph=True)]) for fa in f
        ]
        jacobian = torch.stack(rows)
        yield f.detach(), jacobian @ jacobian.T / len(x)
        if t < steps:
            gu, gv = torch.autograd.grad(((f - y) ** 2).sum() / (2 * len(x)), (u, v))
            with torch.no_grad():
                u -= lr * gu
                v -= lr * gv


def scalar_map(f, curvature, lr, n, y, x, steps):
    """The warm-up model in (f, lambda), one number at a time."""
    outputs, curvatures, kappa = [f], [curvature], x * x / n
    for _ in range(steps):
        ft = f - y
        f_next = y + (1 - lr * curvature + lr**2 * kappa * f * ft) * ft
        curvature = curvature + lr * kappa * ft * (lr * curvature * ft - 4 * f)
        f = f_next
        outputs.append(f)
        curvatures.append(curvature)
    return outputs, curvatures


def trainable(model):
    """The trainable parameters."""
    return [p for p in model.parameters() if p.requires_grad]


def flat(tensors):
    """One vector."""
    return torch.cat([t.flatten() for t in tensors])


def derived(outputs, inputs, weights=None):
    """Gradients, the graph kept, zeros where there is no way."""
    grads = torch.autograd.grad(outputs, inputs, weights, retain_graph=True, materialize_grads=True)
    return flat(grads)


def flat_grad(model, loss_fn, batch, values):
    """The gradient of the loss on a copy of the model at these parameter values."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p, value in zip(trainable(model), values, strict=True):
            p.copy_(value)
    return derived(loss_fn(model(batch[0]), batch[1]), trainable(model))


def dense_hessian(model, loss_fn, batch):
    """Row by row, by double backward, on a copy of the model."""
    model = copy.deepcopy(model)
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention cannot be derived twice
        loss = loss_fn(model(batch[0]), batch[1])
    grads = torch.autograd.grad(loss, trainable(model), create_graph=True)
    return torch.stack([derived(g, trainable(model)) for g in flat(grads)])


def difference_hessian(model, loss_fn, batch, h=1e-4):
    """Column by column, by fourth-order differences of first-order gradients: no second derivative is taken."""
    values = [p.detach() for p in trainable(model)]
    columns = []
    for j, value in enumerate(values):
        for i in range(value.numel()):
            moved = []
            for k in (2, 1, -1, -2):
                shifted = value.clone()
                shifted.view(-1)[i] += k * h
                moved.append(flat_grad(model, loss_fn, batch, [*values[:j], shifted, *values[j + 1 :]]))
            columns.append((-moved[0] + 8 * moved[1] - 8 * moved[2] + moved[3]) / (12 * h))
    return torch.stack(columns, dim=1)


def dense_ntk(model, x):
    """J J^T/m, one backward pass an output, on a copy of the model."""
    model = copy.deepcopy(model)
    out = model(x)
    jacobian = torch.stack([derived(f, trainable(model)) for f in out.flatten()])
    return jacobian @ jacobian.T / len(out)
