"""The gauge of one parameter group of a torch optimizer: x_t, kappa_t, and what a step does to them.

The weights in the group are theta~ = theta / x. Below, `x` is the scale relative to the last rebase; the true
one is x * 2^-doublings.
"""

import math
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from normcore.checks import columns
from normcore.equivalence.buffers import alike, multiply, scale_buffers, shift_buffer
from normcore.equivalence.gauge import Step, advance_by
from normcore.equivalence.rules import UpdateRule, look_up, rule_of
from normcore.sharded import is_sharded

RECORD = "exp_lr"
"""Key of the gauge's numbers in the group: they go wherever the optimizer's state goes."""

GAUGE_OF: weakref.WeakValueDictionary[int, "GroupGauge"] = weakref.WeakValueDictionary()
"""id of a converted parameter -> its gauge, as long as that lives."""


class Plan(NamedTuple):
    """What the coming step will do: the gauge's step, the kappa it starts from, and its two rates."""

    step: Step
    ratio: float
    lr: float
    """The rate that the optimizer gets."""
    log_lr: float
    """The logarithm of the exponential rate, rebases included."""


class GroupGauge:
    """x_t and kappa_t of one group, with the maps between its two runs.

    Gradients are kept in ordinary units, those of the run with weight decay: a hook on each weight divides what
    arrives by x. Under coupled decay the optimizer sees them, for the time of its step, in the units of the
    converted weights, and its momentum buffer is in these units. Decoupled rules need no buffer converted.
    Gradients of sharded weights reach no hook; between steps they are x times the ordinary ones.
    """

    def __init__(self, optimizer: Optimizer, index: int, rule: UpdateRule | None = None) -> None:
        """Go on from the group's record, else start at x = 1, kappa = 0, where both runs are in the same state."""
        self.optimizer, self.index, self._rule = optimizer, index, rule
        self.x, self.ratio, self.doublings = 1.0, 0.0, 0
        self.verified, self.waited = False, False
        self._log_lr: float | None = None
        self._rate: Tensor | None = None
        self._saved: dict[str, Any] = {}
        self._grads: list[tuple[Tensor, Tensor]] = []
        self._plan: Plan | None = None
        self._hooks: dict[int, RemovableHandle] = {}
        self._take(self.group.get(RECORD, {}))

    def hook(self) -> None:
        """Have gradients arrive in ordinary units; a frozen weight may be trained later."""
        self.record()
        for p in self.group["params"]:
            GAUGE_OF[id(p)] = self
            if is_sharded(p) or id(p) in self._hooks:
                continue
            frozen = not p.requires_grad
            handle = p.requires_grad_().register_hook(lambda grad: grad if self.x == 1.0 else grad / self.x)
            self._hooks[id(p)] = handle
            if frozen:
                p.requires_grad_(False)

    def unhook(self) -> None:
        """Leave the group as any other."""
        for handle in self._hooks.values():
            handle.remove()
        for p in self.group["params"]:
            GAUGE_OF.pop(id(p), None)
        self.group.pop(RECORD, None)

    @property
    def group(self) -> dict[str, Any]:
        """The optimizer's group (looked up, since load_state_dict replaces it)."""
        return self.optimizer.param_groups[self.index]

    @property
    def rule(self) -> UpdateRule:
        """How the optimizer updates the group."""
        return self._rule or look_up(str(rule_of(self.optimizer, self.group)))

    @property
    def moved(self) -> bool:
        """Whether weights or buffers differ from those of the run with weight decay."""
        return self.x != 1.0 or self.ratio != 0.0

    @property
    def log_scale(self) -> float:
        """Log x_t, rebases included."""
        return math.log(self.x) - self.doublings * math.log(2.0)

    @property
    def log_lr(self) -> float:
        """The logarithm of the last exponential learning rate, rebases included."""
        if self._log_lr is None:
            raise ValueError("log_lr must be read after a step, got none so far")
        return self._log_lr

    def is_ordinary(self, param: Tensor) -> bool:
        """Whether param.grad is now in the units of the run with weight decay, and not x times that."""
        return not is_sharded(param) if self._plan is None else self.rule.decoupled

    def plan(self) -> Plan:
        """Compute the coming step from the hyper-parameters as the user set them; changes nothing."""
        group, rule = self.group, self.rule
        lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
        coupled = not rule.decoupled
        momentum = float(group.get("momentum", 0.0)) if coupled else 0.0
        columns(1, lr=lr, weight_decay=weight_decay, momentum=momentum)
        dampening = self._dampening(momentum) if coupled else 0.0
        if rule.nesterov and lr * weight_decay * (1 + momentum) >= 1:
            raise ValueError(
                f"weight_decay must keep lr*weight_decay*(1+momentum) < 1, got lr={lr!r}, weight_decay={weight_decay!r}"
            )
        ratio, step = advance_by(rule)(self.ratio, lr, weight_decay, momentum, dampening)
        x_next = self.x * (1.0 - step.decrease)
        product = self.x * x_next if coupled else x_next  # ordinary gradients need no x_t
        if product == 0.0:
            raise OverflowError(
                f"the exponential rate leaves the float range at log x_t = {self.log_scale:.4g}; use rebase=True"
            )
        log_lr = -math.inf
        if lr > 0:
            log_lr = math.log(lr * step.rate_gain) - rule.degree * self.log_scale
            log_lr -= self.log_scale + math.log1p(-step.decrease)
        return Plan(step, ratio, lr * step.rate_gain / product, log_lr)

    def _dampening(self, momentum: float) -> float:
        """The dampening of the coming step, 0 while torch creates the buffers; refuse what the gauge does not follow."""
        state, group = self.optimizer.state, self.group
        fresh = [state.get(p, {}).get("momentum_buffer") is None for p in group["params"]]
        if momentum == 0.0 and not all(fresh):
            raise ValueError(
                "momentum must stay > 0 once a momentum buffer exists, got 0.0: torch would leave the buffer stale"
            )
        dampening = 0.0 if all(fresh) else float(group.get("dampening", 0.0))
        if dampening != 0.0 and any(fresh):
            raise ValueError(
                f"dampening must be 0 while a parameter of the group has no momentum buffer yet, got {dampening!r}"
            )
        return dampening

    def enter(self, plan: Plan) -> None:
        """Put the group into the run without weight decay for one step."""
        group, params = self.group, self.group["params"]
        if self.ratio != 0.0:
            self._create_buffers()
        if plan.ratio != self.ratio:
            shift_buffer(self.optimizer, params, (self.ratio - plan.ratio) * self.x**2)
            self.ratio = plan.ratio
        changes: dict[str, Any] = {"lr": self._in_kind(group["lr"], plan.lr), "weight_decay": 0.0}
        if not self.rule.decoupled:
            scale_buffers(self.optimizer, params, plan.step.gain_before)
            if "momentum" in group:
                changes["momentum"] = plan.step.momentum
        self._convert_gradients(params)
        self._saved = {name: group[name] for name in changes}
        self._plan = plan
        group.update(changes)

    def _in_kind(self, lr: Any, value: float) -> Any:
        """The rate as a tensor where lr is one, always the same, so that a compiled step stays compiled."""
        if not isinstance(lr, Tensor):
            return value
        if self._rate is None or self._rate.device != lr.device:
            exact = torch.float64 if lr.device.type == "cpu" else lr.dtype
            self._rate = torch.empty_like(lr, dtype=exact)
        return self._rate.fill_(value)

    @torch.no_grad()
    def _convert_gradients(self, params: list[Tensor]) -> None:
        """Give the optimizer the gradients in its own units; those of the user are kept aside, bit for bit."""
        if self.x == 1.0:
            return
        coupled = not self.rule.decoupled
        self._grads = [(p, p.grad) for p in params if p.grad is not None and is_sharded(p) != coupled]
        grads = [grad for _, grad in self._grads]
        for rows in alike(grads):
            converted = torch._foreach_mul([grads[i] for i in rows], self.x if coupled else 1.0 / self.x)
            for i, grad in zip(rows, converted, strict=True):
                self._grads[i][0].grad = grad

    def _create_buffers(self) -> None:
        """Give a parameter that has not had a gradient yet the buffer -p theta that stands for an ordinary buffer of 0."""
        state = self.optimizer.state
        late = [p for p in self.group["params"] if state.get(p, {}).get("momentum_buffer") is None]
        if late:
            shift_buffer(self.optimizer, late, -self.ratio * self.x**2)

    def _restore(self) -> None:
        """Give hyper-parameters and gradients back as they were before the step."""
        self.group.update(self._saved)
        for p, grad in self._grads:
            p.grad = grad
        self._saved, self._grads = {}, []

    def undo(self) -> None:
        """Forget a step that has raised."""
        if self._plan is not None and not self.rule.decoupled:
            scale_buffers(self.optimizer, self.group["params"], 1.0 / self._plan.step.gain_before)
        self._restore()
        self._plan = None

    def leave(self) -> None:
        """Close the step: restore the group, treat parameters that did not move, and advance x and kappa."""
        self._restore()
        if self._plan is None:
            return
        step, _, _, self._log_lr = self._plan
        self._plan = None
        params, alpha = self.group["params"], 1.0 - step.decrease
        still = [p for p in params if p.grad is None]
        if not self.rule.decoupled:
            scale_buffers(self.optimizer, [p for p in params if p.grad is not None], step.gain_after)
        if still:
            self._hold(still, step)
        self.x *= alpha
        # without momentum there is no buffer for kappa to describe
        self.ratio = step.ratio if step.momentum > 0 else 0.0
        self.record()

    @torch.no_grad()
    def _hold(self, params: list[Tensor], step: Step) -> None:
        """Keep theta and its buffer where the run with weight decay leaves them when there is no gradient: where they were."""
        alpha = 1.0 - step.decrease
        if not self.rule.decoupled:
            scale_buffers(self.optimizer, params, alpha / step.gain_before)
            if step.ratio != 0.0 or self.ratio != 0.0:
                shift_buffer(self.optimizer, params, alpha * self.x**2 * (self.ratio - step.ratio))
        multiply(params, 1.0 / alpha)

    def rebase(self) -> None:
        """Bring x back into [1/2, 1) by powers of two: exact in binary floats, whatever the run."""
        if self.x < 0.5:
            doublings = -math.frexp(self.x)[1]
            self._multiply(2.0**doublings)
            self.doublings += doublings
            self.record()

    def _multiply(self, factor: float) -> None:
        """Multiply x by the factor: theta~ shrinks by it, a converted buffer grows by it."""
        multiply(self.group["params"], 1.0 / factor)
        if not self.rule.decoupled:
            scale_buffers(self.optimizer, self.group["params"], factor)
        self.x *= factor

    def to_weight_decay(self) -> None:
        """Map weights, buffers and gradients back to the run with weight decay: x = 1, kappa = 0."""
        params = self.group["params"]
        if self.ratio != 0.0:
            held = [p for p in params if self.optimizer.state.get(p, {}).get("momentum_buffer") is not None]
            shift_buffer(self.optimizer, held, self.ratio * self.x**2)
        multiply([p.grad for p in params if p.grad is not None and is_sharded(p)], 1.0 / self.x)
        self._multiply(1.0 / self.x)
        self.load({})

    def from_weight_decay(self, state: dict[str, Any]) -> None:
        """Map them from the run with weight decay to the gauge of this state: the inverse."""
        self._multiply(state["x"])
        self.load(state)
        if self.ratio != 0.0:
            shift_buffer(self.optimizer, self._held(), -self.ratio * self.x**2)
        multiply([p.grad for p in self.group["params"] if p.grad is not None and is_sharded(p)], self.x)

    def _held(self) -> list[Tensor]:
        """The parameters that have a momentum buffer."""
        state = self.optimizer.state
        return [p for p in self.group["params"] if state.get(p, {}).get("momentum_buffer") is not None]

    def buffers(self) -> list[Tensor]:
        """The converted buffers."""
        return (
            [] if self.rule.decoupled else [self.optimizer.state[p]["momentum_buffer"] for p in self._held()]
        )

    def state(self) -> dict[str, Any]:
        """The numbers to save."""
        return {
            "x": self.x,
            "ratio": self.ratio,
            "doublings": self.doublings,
            "decoupled": self.rule.decoupled,
        }

    def record(self) -> None:
        """Leave the numbers in the group."""
        self.group[RECORD] = self.state()

    def load(self, state: dict[str, Any]) -> None:
        """Take the numbers back; without any, those of a run with weight decay."""
        self._take(state)
        self.record()

    def _take(self, state: dict[str, Any]) -> None:
        self.x, self.ratio = float(state.get("x", 1.0)), float(state.get("ratio", 0.0))
        self.doublings = int(state.get("doublings", 0))


def _refuse_copies(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Raise where a step would take converted weights for ordinary ones: in a copy that no ExpLR is attached to."""
    for group in optimizer.param_groups:
        record = group.get(RECORD, {"x": 1.0, "ratio": 0.0})
        if record["x"] == 1.0 and record["ratio"] == 0.0:
            continue
        gauge = GAUGE_OF.get(id(group["params"][0]))
        if gauge is None or gauge.optimizer is not optimizer:
            raise ValueError(
                "optimizer must have an ExpLR attached, got one with weights that ExpLR has converted (a copy, or loaded): "
                "attach ExpLR(optimizer, model), which goes on from there, and detach() it for weight decay"
            )


register_optimizer_step_pre_hook(_refuse_copies)
