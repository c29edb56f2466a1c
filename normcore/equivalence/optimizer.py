"""Train at the equivalent exponential learning rate with a stock torch optimizer, in the units of the run with weight decay.

Two step hooks do it. Before a step the tagged groups get the rate lr / (x_t x_{t+1}) and no weight decay,
after it they read again as the user set them, so that schedulers work in ordinary units. Only scalars change,
apart from element-wise work on buffers and weights at gauge resets and rebases.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from normcore.equivalence.group_gauge import GroupGauge, scale_buffers, shift_buffer
from normcore.equivalence.norm_layers import NormScaling
from normcore.equivalence.schedule import EquivalentSchedule
from normcore.invariance.report import scale_invariance
from normcore.sharded import reshard


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


class ExpLR:
    """Run an optimizer's scale-invariant groups without weight decay, at the equivalent exponential learning rate.

    Works on `torch.optim.SGD` (momentum, dampening, Nesterov; coupled decay) and `torch.optim.AdamW`
    (decoupled decay), fused or not, on any device. Only groups with `scale_invariant=True` are converted
    (`param_groups` makes them); the others train untouched. `group["lr"]`, `group["weight_decay"]` and
    `group["momentum"]` keep reading and working as in the run with weight decay, whose function the model
    computes at every step: theta_t = x_t theta~_t. Whenever x_t falls below 1/2 weights and buffers are
    multiplied by powers of two, bit-exactly, so that nothing leaves the float range.

    Attach it at any time, also in the middle of a run, with the optimizer between two steps. The gradients of
    converted weights are x_t times the ordinary ones: clip with `clip_grad_norm_` and `clip_grad_value_` of
    this object, not with torch's, whose threshold would be in the wrong units.

    Under DDP and FSDP2 (`fully_shard`) attach it after wrapping, in all processes; the run is the one of a
    single process. Names in its state are those of the `model` given.

    Args:
        optimizer: SGD or AdamW, with at least one group tagged `scale_invariant=True`.
        model: give it when the converted weights feed normalization layers with eps > 0 or running
            statistics. Both are then co-scaled, so that train and eval outputs equal those of the run with
            weight decay.
        loss_fn: with `model` and `batch`, the tagged groups are tested and a warning names those that are not
            scale-invariant.
        batch: an (inputs, targets) pair.
        rebase: False lets the weights grow; float32 then overflows.

    Raises:
        TypeError: the optimizer has no known gauge (Adam with coupled L2, LBFGS, ...).
        ValueError: no tagged group; later, in `optimizer.step()`, a hyper-parameter out of range, before
            anything has moved.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> groups = [{"params": [weight], "scale_invariant": True}]
        >>> optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.5)
        >>> exp_lr = ExpLR(optimizer)
        >>> (weight[0] / weight.norm()).backward(); optimizer.step()
        >>> round(exp_lr.log_lr(0), 6), optimizer.param_groups[0]["lr"]  # log(0.1 / 0.95)
        (-2.251292, 0.1)

    Source: Li & Arora (2020), arXiv 1910.07454, Theorem 2.13, for any schedule; partial invariance, Nesterov,
    AdamW and rebasing are this project's.

    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None = None,
        *,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        batch: tuple[Any, Any] | None = None,
        rebase: bool = True,
    ) -> None:
        check_supported(optimizer)
        tagged = [i for i, group in enumerate(optimizer.param_groups) if group.get("scale_invariant") is True]
        if not tagged:
            raise ValueError(
                "optimizer must have a group with scale_invariant=True, got none; normcore.param_groups makes such groups"
            )
        self.optimizer, self.model, self.rebase = optimizer, model, rebase
        self.gauges = {i: GroupGauge(optimizer, i) for i in tagged}
        if model is not None and loss_fn is not None and batch is not None:
            warn_if_not_invariant(model, loss_fn, batch, self.gauges)
        self.norms = None if model is None else NormScaling(model, list(self.gauges.values()))
        self._skipped = False
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Give the tagged groups their exponential learning rate."""
        for gauge in self.gauges.values():
            gauge.restore()  # a step that raised left them
        found_inf = getattr(
            optimizer, "found_inf", None
        )  # set by GradScaler for fused optimizers: the step will do nothing
        self._skipped = found_inf is not None and bool(found_inf.item())
        if self._skipped:
            return
        plans = [gauge.plan() for gauge in self.gauges.values()]
        for gauge, plan in zip(self.gauges.values(), plans, strict=True):
            gauge.enter(plan)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Give the groups back as the user set them, and move the gauge."""
        if self._skipped:
            return
        for gauge in self.gauges.values():
            gauge.leave()
            if self.rebase:
                gauge.rebase()
        self._update_norms()

    def _update_norms(self) -> None:
        """Co-scale the norm layers with the weights that feed them."""
        if self.norms is not None:
            self.norms.update()

    def log_scale(self, group: int = 0) -> float:
        """Log x_t of a group (its index in the optimizer), rebases included: theta_t = x_t theta~_t."""
        return self._gauge(group).log_scale

    def log_lr(self, group: int = 0) -> float:
        """The logarithm of the exponential learning rate of a group's last step, as without rebases.

        ValueError before the first step.
        """
        return self._gauge(group).log_lr

    def _gauge(self, group: int) -> GroupGauge:
        """The gauge of a tagged group."""
        if group not in self.gauges:
            raise ValueError(
                f"group must be the index of a tagged group, one of {sorted(self.gauges)}, got {group!r}"
            )
        return self.gauges[group]

    @contextmanager
    def ordinary_gradients(self) -> Iterator[None]:
        """Within this context the gradients of converted weights are in the units of the run with weight decay.

        Use it around anything that reads or changes gradients with a fixed scale: clipping, noise, norms in a
        log.
        """
        self._scale_gradients(inverse=True)
        try:
            yield
        finally:
            self._scale_gradients(inverse=False)

    def _scale_gradients(self, *, inverse: bool) -> None:
        """Multiply the converted weights' gradients by x_t, or divide."""
        for gauge in self.gauges.values():
            for p in gauge.group["params"]:
                if p.grad is not None and gauge.x != 1.0:
                    p.grad.mul_(1.0 / gauge.x if inverse else gauge.x)

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Clip the norm of all the optimizer's gradients, in the units of the run with weight decay.

        Returns:
            The total norm before clipping, as `torch.nn.utils.clip_grad_norm_` does.

        """
        with self.ordinary_gradients():
            return torch.nn.utils.clip_grad_norm_(self._parameters(), max_norm, norm_type)

    def clip_grad_value_(self, clip_value: float) -> None:
        """Clip every entry of the optimizer's gradients, in the units of the run with weight decay."""
        with self.ordinary_gradients():
            torch.nn.utils.clip_grad_value_(self._parameters(), clip_value)

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def detach(self) -> None:
        """Return weights, buffers, eps and running statistics to the run with weight decay, and remove the hooks."""
        for gauge in self.gauges.values():
            gauge.to_weight_decay()
        self._update_norms()
        if self.norms is not None:
            self.norms.close()
            reshard(self.norms.model)
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The gauges and norm-layer degrees as plain numbers and names, to save beside the other states."""
        norms = self.norms
        return {
            "version": 1,
            "groups": {i: gauge.state() for i, gauge in self.gauges.items()},
            "names": {i: self._names(gauge) for i, gauge in self.gauges.items()},
            "norms": None
            if norms is None or norms.degrees is None
            else {"degrees": norms.degrees, "eps": norms.eps},
        }

    def _names(self, gauge: GroupGauge) -> list[str] | None:
        """The model's names of a group's parameters."""
        if self.norms is None:
            return None
        return [self.norms.named[p] for p in gauge.group["params"]]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; load the model's and the optimizer's states too, in any order.

        Except with `torch.distributed.checkpoint`, whose `set_state_dict` lets a fresh optimizer take a step: load
        this state after it. It is the same in all processes.

        Raises:
            ValueError: the state is of another version or has other tagged groups.

        """
        if state.get("version") != 1:
            raise ValueError(f"state must be of version 1, got {state.get('version')!r}")
        groups = {int(i): values for i, values in state["groups"].items()}
        if set(groups) != set(self.gauges):
            raise ValueError(f"state must hold the tagged groups {sorted(self.gauges)}, got {sorted(groups)}")
        for i, gauge in self.gauges.items():
            gauge.load(groups[i])
        if self.norms is not None and state["norms"] is not None:
            self.norms.resume(state["norms"]["degrees"], state["norms"]["eps"])


def follow(optimizer: Optimizer, schedule: EquivalentSchedule, t: int) -> None:
    """Prepare a stock optimizer for step t of the run without weight decay; call it before `optimizer.step()`.

    Multiplies the momentum buffer by the gains, adds the correction where there is one, and sets lr, momentum
    and weight_decay=0. Where some groups are tagged `scale_invariant=True` only those follow; otherwise all
    do. Needs the whole schedule in the float range; `ExpLR` does not.

    Args:
        optimizer: SGD with the momentum and nesterov flag of the original run, or AdamW.
        schedule: from `equivalent_schedule`, `texp` and so on.
        t: the step, 0 <= t < schedule.steps; every step must be followed, in order.

    Raises:
        ValueError: t is out of range.
        OverflowError: the rate exceeds the float range.

    Example:
        >>> import torch
        >>> from normcore.equivalence.theorems import texp_plus_plus
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0, momentum=0.9)
        >>> follow(optimizer, texp_plus_plus(0.1, 0.5, 0.9, steps=2), 0)
        >>> round(optimizer.param_groups[0]["lr"], 6), optimizer.param_groups[0]["weight_decay"]
        (0.105263, 0.0)

    Source: Li & Arora (2020), arXiv 1910.07454, Theorems 2.12 and 2.13.

    """
    if not 0 <= t < schedule.steps:
        raise ValueError(f"t must be in [0, {schedule.steps}), got {t!r}")
    lr = math.exp(schedule.log_lr[t])
    groups = [g for g in optimizer.param_groups if g.get("scale_invariant")] or optimizer.param_groups
    params = [p for group in groups for p in group["params"]]
    if t > 0:
        scale_buffers(optimizer, params, float(schedule.gain_after[t - 1]))
    if t in schedule.corrections:
        shift_buffer(optimizer, params, schedule.corrections[t])
    scale_buffers(optimizer, params, float(schedule.gain_before[t]))
    for group in groups:
        group.update(lr=lr, weight_decay=0.0)
        if "momentum" in group:
            group["momentum"] = float(schedule.momentum[t])
