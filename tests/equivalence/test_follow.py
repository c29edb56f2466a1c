"""Stock optimizers along computed schedules."""

import pytest
import torch
from helpers import VISIBLE
from nets import logit_gap, pair
from torch.optim import SGD, AdamW

import normcore as nc

STEPS = 60
GAP = 1e-9
"""Float64 logits after 60 steps."""


def gap_along(schedule, **options):
    """The logit gap between SGD with weight decay and stock SGD along the schedule, momentum 0.9, eps = 0."""
    models, optimizers = pair(
        lambda g: SGD(g, lr=0.1, momentum=0.9, weight_decay=1e-2, **options), norm="layer", eps=0.0
    )
    return logit_gap(models, optimizers, STEPS, each=lambda t, o: nc.follow(o[1], schedule, t))


def test_texp_with_its_corrections():
    schedule = nc.texp([(0.1, STEPS)], 1e-2, 0.9)
    assert gap_along(schedule) < GAP


def test_texp_plus_plus():
    assert gap_along(nc.texp_plus_plus(0.1, 1e-2, 0.9, steps=STEPS)) < GAP


def test_control_another_weight_decay():
    assert gap_along(nc.texp_plus_plus(0.1, 1.1e-2, 0.9, steps=STEPS)) > VISIBLE


def test_nesterov_gains():
    assert gap_along(nc.equivalent_schedule(0.1, 1e-2, 0.9, nesterov=True, steps=STEPS), nesterov=True) < GAP


def test_the_moments_of_adamw():
    """Its second moment takes the gains squared; eps, which follow leaves to the user, is as good as 0 here."""
    schedule = nc.equivalent_schedule(0.01, 0.3, decoupled=True, degree=0, steps=STEPS)
    make = lambda g: AdamW(g, lr=0.01, weight_decay=0.3, eps=1e-300)  # noqa: E731
    models, optimizers = pair(make, norm="layer", eps=0.0)
    assert logit_gap(models, optimizers, STEPS, each=lambda t, o: nc.follow(o[1], schedule, t)) < GAP


def test_a_schedule_begins_at_its_beginning():
    optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    schedule = nc.texp_plus_plus(0.1, 1e-2, 0.9, steps=5)
    with pytest.raises(ValueError, match="t must be 0 for an optimizer that has taken no step, got 1"):
        nc.follow(optimizer, schedule, 1)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
    for t in range(5):
        nc.follow(optimizer, schedule, t)
        optimizer.step()


def test_step_out_of_range():
    optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match=r"t must be in \[0, 5\), got 5"):
        nc.follow(optimizer, nc.texp_plus_plus(0.1, 1e-2, steps=5), 5)
