"""Tolerances, each with its reason, comparisons that report, and a device of straw."""

import torch

EXACT = 1e-12
"""Float64 algebra with no long sums: a few hundred roundings of 1e-16."""

TRAJECTORY = 1e-10
"""Float64 runs of at most a few hundred steps on the random loss: rounding, amplified by the dynamics."""

VISIBLE = 1e-5
"""What a broken assumption must exceed to count as a failure that the test can see: five decades above
TRAJECTORY."""


class Far(torch.Tensor):
    """A number on a device that is not the processor, as far as it says; `x.as_subclass(Far)` is one."""

    device = torch.device("meta")
