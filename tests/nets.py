"""Small normalized nets and batches for the optimizer tests; plain torch."""

import copy
import itertools

import torch
from torch import nn

DIM, WIDTH, CLASSES, BATCH = 6, 8, 3, 16


def net(norm="batch", *, eps=1e-5, dtype=torch.float64, seed=0):
    """Linear-norm-ReLU twice and a head, everything trained; norms are affine and batch norm keeps running
    statistics."""
    torch.manual_seed(seed)
    make = {
        "batch": lambda: nn.BatchNorm1d(WIDTH, eps=eps),
        "layer": lambda: nn.LayerNorm(WIDTH, eps=eps),
        "group": lambda: nn.GroupNorm(2, WIDTH, eps=eps),
    }
    layers = [
        nn.Linear(DIM, WIDTH, bias=False),
        make[norm](),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH, bias=False),
        make[norm](),
        nn.ReLU(),
        nn.Linear(WIDTH, CLASSES),
    ]
    return nn.Sequential(*layers).to(dtype)


def batches(steps, *, dtype=torch.float64, seed=1):
    """Random inputs and labels."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64).to(dtype)
        yield x, torch.randint(CLASSES, (BATCH,), generator=generator)


def groups(model, **options):
    """The two hidden weights tagged, all else untagged with its own weight decay."""
    tagged = [model[0].weight, model[3].weight]
    rest = [p for p in model.parameters() if all(p is not q for q in tagged)]
    return [
        {"params": tagged, "scale_invariant": True, **options},
        {"params": rest, "scale_invariant": False, **options, "weight_decay": 1e-3},
    ]


def step(model, optimizer, batch, scheduler=None):
    """One training step; returns the train-mode logits before it."""
    optimizer.zero_grad()
    output = model(batch[0])
    nn.functional.cross_entropy(output, batch[1]).backward()
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return output.detach()


def pair(make_optimizer, *, norm="batch", eps=1e-5, dtype=torch.float64):
    """Two identical models with an optimizer each."""
    models = [net(norm, eps=eps, dtype=dtype)]
    models.append(copy.deepcopy(models[0]))
    return models, [make_optimizer(groups(model)) for model in models]


def logit_gap(models, optimizers, steps, *, schedulers=(None, None), dtype=torch.float64, each=None, skip=0):
    """The largest difference of the two models' logits, train mode along the way and eval mode at the end,
    over `steps` steps."""
    gap = 0.0
    for t, batch in enumerate(itertools.islice(batches(skip + steps, dtype=dtype), skip, None)):
        if each is not None:
            each(t, optimizers)
        a, b = (
            step(*run, batch, scheduler)
            for run, scheduler in zip(zip(models, optimizers, strict=True), schedulers, strict=True)
        )
        gap = max(gap, float((a - b).abs().max()))
    return max(gap, eval_gap(models, dtype))


def eval_gap(models, dtype=torch.float64):
    """The largest difference of the logits in eval mode."""
    x = next(batches(1, dtype=dtype, seed=99))[0]
    outputs = []
    for model in models:
        model.eval()
        with torch.no_grad():
            outputs.append(model(x))
        model.train()
    return float((outputs[0] - outputs[1]).abs().max())
