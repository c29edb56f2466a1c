"""Train at the equivalent exponential learning rate with a stock torch optimizer, in the units of the run with weight decay.

Two step hooks do it. Before a step the tagged groups get the exponential rate and no weight decay, after it they
read again as the user set them. Only scalars change, apart from element-wise work on gradients and buffers, and on
weights at gauge resets and rebases.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normcore.checks import checked_count, numbers, require, require_flags, require_module, understood
from normcore.equivalence.co_scaling import CoScaling, Watch, warn_if_not_invariant
from normcore.equivalence.gauge import UpdateRule, check_supported, look_up, unwrapped
from normcore.equivalence.group_gauge import GAUGE_OF, RECORD, GroupGauge, is_moved, numbers_in
from normcore.equivalence.step_hooks import StepHooks
from normcore.sharded import parts, reshard


class ExpLR:
    """Run an optimizer's scale-invariant groups without weight decay, at the equivalent exponential learning rate.

    Works on `torch.optim.SGD` (momentum, dampening, Nesterov; coupled decay), on `AdamW`, `Muon` and whatever torch
    decays beside the update (`decoupled_weight_decay`), fused or not, on any device. Only groups with
    `scale_invariant=True` are converted (`param_groups` makes them); the others train untouched. `group["lr"]`,
    `group["weight_decay"]` and `group["momentum"]` keep reading and working as in the run with weight decay, whose
    function the model computes at every step: theta_t = x_t theta~_t. Whenever x_t falls below 1/2 weights and
    buffers are multiplied by powers of two, bit-exactly, so that nothing leaves the float range.

    Attach it at any time, also in the middle of a run, with the optimizer between two steps. What is not exact is
    refused: at the first forward pass (in train mode, and in eval mode) the tagged weights are halved for a trial, and
    the outputs must stay the same up to rounding. Give the model that is trained, or whatever wraps it.

    Gradients are in ordinary units wherever they can be seen (`param.grad`, clipping, GradScaler, logs); one that you
    write into `param.grad` yourself must be, too. (Until the step SGD's are kept a second time, as they came.) Weights
    are not: read or move them (averages, SAM, AGC, a saved model that others shall load) within `ordinary_weights()`.

    The gauge travels in the optimizer's state (`group["exp_lr"]`): who saves and loads model and optimizer together
    goes on exactly, and an optimizer with converted weights refuses to step without an ExpLR.

    Under DDP and FSDP2 (`fully_shard`) attach it after wrapping, in all processes; the run is the one of a
    single process. Names in its state are those of the `model` given. Gradients of sharded weights reach no hook: clip
    them with `clip_grad_norm_` and `clip_grad_value_` of this object, and read them within `ordinary_gradients()`.

    Args:
        optimizer: with at least one group tagged `scale_invariant=True`; or what a trainer made of it (`.optimizer`).
        model: give it when the converted weights feed normalization layers with eps > 0 or running
            statistics. Both are then co-scaled, so that train and eval outputs equal those of the run with
            weight decay. Without it nothing is checked.
        loss_fn: with `model` and `batch`, the tagged groups are tested at once and a warning names those that are not
            scale-invariant. They are converted all the same.
        batch: an (inputs, targets) pair.
        rebase: False lets the weights grow; float32 then overflows.
        rule: of an optimizer that is not torch's own: "sgd", "nesterov" (decay in the gradient, buffers named
            momentum_buffer), "sgdw", "adamw", "lion", "muon" (w <- (1 - lr weight_decay) w - lr update).

    Raises:
        TypeError: the optimizer has no known gauge (Adam with coupled L2, LBFGS, a class with its own step ...).
        ValueError: no tagged group; weights that are not the model's, or that another ExpLR has converted. Later, in
            the first forward pass, outputs that change; in `optimizer.step()`, before anything has moved, a
            hyper-parameter out of range, a second step before any forward pass, weights loaded in another gauge.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> groups = [{"params": [weight], "scale_invariant": True}]
        >>> optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.5)
        >>> exp_lr = ExpLR(optimizer)
        >>> (weight[0] / weight.norm()).backward(); optimizer.step()
        >>> round(exp_lr.log_lr(0), 6), optimizer.param_groups[0]["lr"]  # log(0.1 / 0.95)
        (-2.251292, 0.1)

    Source: Li & Arora (2020), arXiv 1910.07454, Theorem 2.13, for any schedule; partial invariance, Nesterov,
    decoupled rules and rebasing are this project's.

    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None = None,
        *,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        batch: tuple[Any, Any] | None = None,
        rebase: bool = True,
        rule: str | None = None,
    ) -> None:
        if model is not None:
            require_module(model)
        require_flags(rebase=rebase)
        self.optimizer, self.model, self.rebase = unwrapped(optimizer), model, rebase
        self.rule: UpdateRule | None = None if rule is None else look_up(rule)
        if self.rule is None:
            check_supported(self.optimizer)
        self.gauges = self._untouched_groups()
        if not self.gauges:
            raise ValueError(
                "optimizer must have a group with scale_invariant=True, got none; normcore.param_groups makes such groups"
            )
        excused: set[int] = set()
        if model is not None and loss_fn is not None and batch is not None:
            excused = warn_if_not_invariant(model, loss_fn, batch, self.gauges)
        self.norms = CoScaling(model, self.gauges, excused, self._check_loads)
        self._events, self._loads = 0, set[str]()
        self._before_loads: dict[int, dict[str, Any]] = {}
        for gauge in self.gauges.values():
            gauge.hook()
        self._handles: list[Any] = [
            StepHooks(self.optimizer, self._enter, self._leave, self._undo, nested=rule is not None),
            self.optimizer.register_load_state_dict_post_hook(self._on_optimizer_loaded),
        ]
        for module in self.norms.model.modules():
            if not self.norms.tagged().isdisjoint(module.parameters(recurse=False)):
                hook = Watch(functools.partial(self._note_load, "model"))
                self._handles.append(module.register_load_state_dict_post_hook(hook))

    def __reduce__(self) -> Any:
        raise TypeError(
            "ExpLR cannot be copied: copy model and optimizer together, and attach an ExpLR to the copies"
        )

    def _untouched_groups(self) -> dict[int, GroupGauge]:
        """A gauge for each tagged group that has none."""
        found = {}
        for i, group in enumerate(self.optimizer.param_groups):
            if group.get("scale_invariant") is not True or i in vars(self).get("gauges", {}):
                continue
            if any(id(p) in GAUGE_OF for p in group["params"]):
                raise ValueError(
                    f"optimizer must hold weights that no ExpLR has converted, got those of another in group {i}: "
                    "call detach() of that one first (a notebook cell that ran twice?)"
                )
            if any(getattr(p, "_fsdp_flattened", False) for p in group["params"]):
                raise TypeError("optimizer must hold whole weights, or those of fully_shard, got flat ones")
            found[i] = GroupGauge(self.optimizer, i, self.rule)
            found[i].verified = self.model is None
        return found

    def _undo(self) -> None:
        for gauge in self.gauges.values():
            gauge.undo()

    def _enter(self) -> None:
        """Give the tagged groups their exponential learning rate."""
        # set by GradScaler for fused optimizers: the step will do nothing
        found_inf = getattr(self.optimizer, "found_inf", None)
        skipped = found_inf is not None and bool(found_inf.item())
        if skipped:
            return
        self._check_loads()
        self._loads = set()
        self._adopt_new_groups()
        late = [i for i, gauge in self.gauges.items() if not gauge.verified]
        if any(self.gauges[i].waited or is_moved(self.gauges[i].state()) for i in late):
            raise ValueError(
                f"model must be called before the second step, got no forward pass that uses the weights of groups {late}: "
                "give ExpLR the module whose call computes the outputs from all tagged weights, or one around it"
            )
        entering = [gauge for gauge in self.gauges.values() if gauge.verified]
        plans = [gauge.plan() for gauge in entering]
        for i in late:  # this one step is taken with weight decay, which is the same at x = 1
            self.gauges[i].waited = True
        for gauge, plan in zip(entering, plans, strict=True):
            gauge.enter(plan)

    def _leave(self) -> None:
        """Give the groups back as the user set them, and move the gauge."""
        self._events += 1
        for gauge in self.gauges.values():
            gauge.leave()
            if self.rebase:
                gauge.rebase()
        self.norms.update()

    def _adopt_new_groups(self) -> None:
        """Convert what add_param_group has added, from the next forward pass on."""
        new = self._untouched_groups()
        self.gauges |= new
        for gauge in new.values():
            gauge.hook()
        if new:
            self.norms.watch()

    def _check_loads(self) -> None:
        """Raise ValueError where weights and gauges come from different times."""
        before, loads = self._before_loads, self._loads
        moved = (gauge.state() != before.get(i) for i, gauge in self.gauges.items())
        changed = loads == {"gauge"} and any(moved)
        mixed = changed or loads == {"model"}
        if mixed and any(map(is_moved, before.values())):
            raise ValueError(
                f"model and optimizer must be loaded together, got the {next(iter(self._loads))} alone: "
                "the optimizer's state (or ExpLR's) says in which units the weights were saved. A model that is "
                "loaded alone must have been saved in ordinary units: do both within ordinary_weights()"
            )

    def scale(self, group: int = 0) -> float:
        """The number x by which a group's weights, as they are now, give those of the run with weight decay: theta = x w."""
        return self._gauge(group).x

    def log_scale(self, group: int = 0) -> float:
        """Log x_t of a group (its index in the optimizer), rebases included: theta_t = x_t theta~_t."""
        return self._gauge(group).log_scale

    def log_lr(self, group: int = 0) -> float:
        """The logarithm of the exponential learning rate of a group's last step, as without rebases.

        ValueError before the first step.
        """
        return self._gauge(group).log_lr

    def _gauge(self, group: int) -> GroupGauge:
        if checked_count("group", group, least=0) not in self.gauges:
            raise ValueError(
                f"group must be the index of a tagged group, one of {sorted(self.gauges)}, got {group!r}"
            )
        return self.gauges[group]

    @contextmanager
    def ordinary_weights(self) -> Iterator[None]:
        """Within this context model, gradients and optimizer are in the state of the run with weight decay.

        Use it around what reads or moves weights: averages (EMA, SWA), perturbations (SAM), clipping by the weights'
        size (AGC), projections, penalties, a checkpoint for others. Weights that were only read have the same bits
        afterwards, and the gauge is where it was; a step within is taken with the gauge at x = 1, and stays there.
        """
        events, states = self._events, {i: gauge.state() for i, gauge in self.gauges.items()}
        held = [(p, 1.0 / (1.0 / g.x)) for g in self.gauges.values() for p in g.group["params"]]
        held += [
            (t, (1.0 / layer.scale) ** degree)
            for layer in self.norms.layers
            for t, degree in layer.statistics()
        ]
        tensors = [t for t, _ in held] + [b for gauge in self.gauges.values() for b in gauge.buffers()]
        copies = [t.detach().clone() for t in tensors]
        self._to_weight_decay()
        try:
            yield
        finally:
            if self._events == events:
                pairs = zip(held, copies, strict=False)
                only_read = all(torch.equal(*parts([t, copy * factor])) for (t, factor), copy in pairs)
                for i, gauge in self.gauges.items():
                    gauge.from_weight_decay(states[i])
                self.norms.update()
                with torch.no_grad():
                    for t, copy in zip(tensors, copies, strict=True) if only_read else []:
                        t.copy_(copy)

    def _to_weight_decay(self) -> None:
        self._undo()
        for gauge in self.gauges.values():
            gauge.to_weight_decay()
        self.norms.update()

    @contextmanager
    def ordinary_gradients(self) -> Iterator[None]:
        """Within this context all gradients are in the units of the run with weight decay.

        Between steps they are anyway, but for those of sharded weights (FSDP2): use it there around clipping, noise,
        norms in a log.
        """
        units = [(p, g.x) for g in self.gauges.values() for p in g.group["params"] if not g.is_ordinary(p)]
        for p, unit in units:
            if p.grad is not None:
                p.grad.mul_(1.0 / unit)
        try:
            yield
        finally:
            for p, unit in units:
                if p.grad is not None:
                    p.grad.mul_(unit)

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Clip the norm of all the optimizer's gradients, in the units of the run with weight decay.

        Returns:
            The total norm before clipping, as `torch.nn.utils.clip_grad_norm_` does.

        """
        require("max_norm", max_norm, ">= 0", numbers("max_norm", max_norm) >= 0)
        require("norm_type", norm_type, "> 0", numbers("norm_type", norm_type) > 0)
        with self.ordinary_gradients():
            params = [p for group in self.optimizer.param_groups for p in group["params"]]
            return torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type)

    def clip_grad_value_(self, clip_value: float) -> None:
        """Clip every entry of the optimizer's gradients, in the units of the run with weight decay."""
        require("clip_value", clip_value, ">= 0", numbers("clip_value", clip_value) >= 0)
        with self.ordinary_gradients():
            for group in self.optimizer.param_groups:
                torch.nn.utils.clip_grad_value_(group["params"], clip_value)

    def detach(self) -> None:
        """Return weights, buffers, eps and running statistics to the run with weight decay, and remove the hooks."""
        self._to_weight_decay()
        for gauge in self.gauges.values():
            gauge.unhook()
        self.norms.leave()
        reshard(self.norms.model)
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The gauges and norm-layer degrees as plain numbers and names, to save beside the other states.

        The optimizer's state has the gauges too; this one is for `convert_checkpoint`, and for savers that keep less.
        """
        return {
            "version": 2,
            "groups": {i: gauge.state() for i, gauge in self.gauges.items()},
            "names": {i: self.norms.names(i) for i in self.gauges},
            "norms": self.norms.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; load the model's and the optimizer's states too, in any order.

        Except with `torch.distributed.checkpoint`, whose `set_state_dict` lets a fresh optimizer take a step: load
        this state after it. It is the same in all processes.

        Raises:
            ValueError: the state is of another version, has other tagged groups, or is damaged.

        """
        with understood(state, "the state_dict of an ExpLR with the same tagged groups"):
            groups = {int(i): values for i, values in state["groups"].items() if numbers_in(values)}
            ours = sorted({*self.gauges, *self._untouched_groups()})
            if (state["version"], sorted(groups)) != (2, ours):
                raise ValueError(f"version, groups must be 2, {ours}, got {state['version']}, {[*groups]}")
        self._adopt_new_groups()
        self._take(groups)

    def _on_optimizer_loaded(self, optimizer: Optimizer) -> None:
        """Take the gauges that came with the optimizer's state; a state without any is one with weight decay."""
        self._take({i: gauge.group.get(RECORD, {}) for i, gauge in self.gauges.items()})

    def _take(self, states: dict[int, dict[str, Any]]) -> None:
        """Move the gauges, and what depends on them but is not loaded."""
        self._note_load("gauge")
        for i, gauge in self.gauges.items():
            gauge.load(states[i])
        self.norms.settle()

    def _note_load(self, what: str, *_: Any) -> None:
        """Remember what has been loaded since the last step, and where the gauges were before."""
        self._events += 1
        if not self._loads:
            self._before_loads = {i: gauge.state() for i, gauge in self.gauges.items()}
        self._loads.add(what)
        self.norms.watch()
