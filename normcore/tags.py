"""What ExpLR may be attached to: optimizers with a gauge, and groups that are scale-invariant."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from normcore.group_gauge import GroupGauge
from normcore.invariance import scale_invariance


def check_supported(optimizer: Optimizer) -> None:
    """Raise TypeError for an optimizer whose weight decay has no gauge."""
    decoupled = all(
        group.get("decoupled_weight_decay", isinstance(optimizer, AdamW)) for group in optimizer.param_groups
    )
    if isinstance(optimizer, torch.optim.SGD) or (isinstance(optimizer, Adam | AdamW) and decoupled):
        return
    reason = (
        "its coupled L2 term enters the second moment; use AdamW"
        if isinstance(optimizer, Adam)
        else "no gauge is known for it"
    )
    raise TypeError(f"optimizer must be torch.optim.SGD or AdamW, got {type(optimizer).__name__}: {reason}")


def warn_if_not_invariant(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batch: tuple[Any, Any],
    gauges: dict[int, GroupGauge],
) -> None:
    """Warn about tagged groups under whose common scaling the model's output changes."""
    names = {p: name for name, p in model.named_parameters()}
    groups = {f"group {i}": [names[p] for p in gauge.group["params"]] for i, gauge in gauges.items()}
    for name, verdict in scale_invariance(model, loss_fn, batch, groups=groups).groups.items():
        if verdict.verdict == "no":
            warnings.warn(
                f"{name} is tagged scale_invariant=True but is not: defect {verdict.defect:.3g} (0 for an invariant group)",
                stacklevel=3,
            )
