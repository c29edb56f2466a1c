"""The gauge of one parameter group of a torch optimizer: x_t, kappa_t, and what a step does to them.

The weights in the group are theta~ = theta / x. Below, `x` is the scale relative to the last rebase; the true
one is x * 2^-doublings.
"""

import functools
import math
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from normcore.checks import checked_count, checked_number, columns, understood
from normcore.equivalence.gauge import Step, UpdateRule, advance_by, look_up, rule_of
from normcore.sharded import is_sharded

BUFFER_DEGREES = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
"""The optimizer buffers that scale with the gradients, and the degree to which they do."""

RECORD = "exp_lr"
"""Key of the gauge's numbers in the group: they go wherever the optimizer's state goes."""

GAUGE_OF: weakref.WeakValueDictionary[int, "GroupGauge"] = weakref.WeakValueDictionary()
"""id of a converted parameter -> its gauge, as long as that lives."""


def alike(tensors: list[Tensor]) -> list[list[int]]:
    """Positions by kind: torch's functions of lists refuse those that mix plain and sharded, dense and sparse."""
    kinds: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        kinds.setdefault((getattr(tensor, "device_mesh", None), tensor.is_sparse), []).append(i)
    return list(kinds.values())


@torch.no_grad()
def multiply(tensors: list[Tensor], factor: float) -> None:
    """Multiply in place."""
    for rows in alike(tensors):
        torch._foreach_mul_([tensors[i] for i in rows], factor)


@torch.no_grad()
def scale_buffers(optimizer: Optimizer, params: list[Tensor], factor: float) -> None:
    """Multiply each buffer of degree r of these parameters by factor^r."""
    if factor == 1.0:
        return
    for name, degree in BUFFER_DEGREES.items():
        found = [optimizer.state.get(p, {}).get(name) for p in params]
        multiply([buffer for buffer in found if buffer is not None], factor**degree)


@torch.no_grad()
def shift_buffer(optimizer: Optimizer, params: list[Tensor], coefficient: float) -> None:
    """Add coefficient * theta~ to the momentum buffer, creating it where there is none yet."""
    for p in params:
        buffer = optimizer.state[p].get("momentum_buffer")
        if buffer is None:
            optimizer.state[p]["momentum_buffer"] = p.detach() * coefficient
        elif buffer.is_sparse:
            optimizer.state[p]["momentum_buffer"] = buffer.to_dense().add_(p.detach(), alpha=coefficient)
        else:
            buffer.add_(p.detach(), alpha=coefficient)


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
        self.x: float
        self.ratio: float
        self.doublings: int
        self.verified, self.waited = False, False
        self._log_lr: float | None = None
        self._rate: Tensor | None = None
        self._plan: Plan | None = None
        self._saved: dict[str, Any] = {}
        self._grads: list[tuple[Tensor, Tensor]] = []
        self._arrived: dict[Tensor, Tensor] = {}
        self._hooks: list[RemovableHandle] | None = None
        self.load(self.group.get(RECORD, {}))

    def hook(self) -> None:
        """Have gradients arrive in ordinary units; a frozen weight may be trained later."""
        self._hooks = []
        for p in self.group["params"]:
            GAUGE_OF[id(p)] = self
            if not is_sharded(p):
                frozen = not p.requires_grad
                self._hooks.append(p.requires_grad_().register_hook(functools.partial(self._arrive, p)))
                p.requires_grad_(not frozen)
        self.record()

    def _arrive(self, param: Tensor, grad: Tensor) -> Tensor:
        """Pass a gradient on in ordinary units; coupled rules will want it as it came."""
        if self.x == 1.0:
            return grad
        if not self.rule.decoupled and not grad.is_sparse:
            self._arrived[param] = grad.detach()
        return grad / self.x

    def unhook(self) -> None:
        """Leave the group as any other."""
        for handle in self._hooks or []:
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

    def _momentum(self, param: Tensor) -> Tensor | None:
        buffer: Tensor | None = self.optimizer.state.get(param, {}).get("momentum_buffer")
        return buffer

    def plan(self) -> Plan:
        """Compute the coming step from the hyper-parameters as the user set them; changes nothing."""
        group, rule = self.group, self.rule
        lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
        momentum = 0.0 if rule.decoupled else float(group.get("momentum", 0.0))
        sound = 0.0 <= lr < math.inf and math.isfinite(weight_decay) and 0.0 <= momentum < 1.0
        if not (sound and lr * weight_decay < 1.0):
            # said in full, which takes longer than the rest of the plan
            columns(1, lr=lr, weight_decay=weight_decay, momentum=momentum)
        dampening = 0.0 if rule.decoupled else self._dampening(momentum)
        if rule.nesterov and lr * weight_decay * (1 + momentum) >= 1:
            raise ValueError(
                f"weight_decay must keep lr*weight_decay*(1+momentum) < 1, got lr={lr!r}, weight_decay={weight_decay!r}"
            )
        ratio, step = advance_by(rule)(self.ratio, lr, weight_decay, momentum, dampening)
        x_next = self.x * (1.0 - step.decrease)
        product = x_next if rule.decoupled else self.x * x_next  # ordinary gradients need no x_t
        if product == 0.0:
            raise OverflowError(
                f"the exponential rate leaves the float range at log x_t = {self.log_scale:.4g}; use rebase=True"
            )
        rate = lr * step.rate_gain / product
        powers = rule.degree - (not rule.decoupled)  # of x_t that the optimizer's own rate lacks
        log_lr = (math.log(rate) if rate > 0 else -math.inf) - powers * math.log(self.x)
        return Plan(step, ratio, rate, log_lr + (rule.degree + 1) * self.doublings * math.log(2.0))

    def _dampening(self, momentum: float) -> float:
        """The dampening of the coming step, 0 while torch creates the buffers; refuse what the gauge does not follow."""
        fresh = [self._momentum(p) is None for p in self.group["params"]]
        if momentum == 0.0 and not all(fresh):
            raise ValueError(
                "momentum must stay > 0 once a momentum buffer exists, got 0.0: torch would leave the buffer stale"
            )
        dampening = 0.0 if all(fresh) else float(self.group.get("dampening", 0.0))
        if dampening != 0.0 and any(fresh):
            raise ValueError(
                f"dampening must be 0 while a parameter of the group has no momentum buffer yet, got {dampening!r}"
            )
        return dampening

    def enter(self, plan: Plan) -> None:
        """Put the group into the run without weight decay for one step."""
        group, params = self.group, self.group["params"]
        late = [p for p in params if self._momentum(p) is None]
        if self.ratio != 0.0 and late:  # -p theta stands for an ordinary buffer of 0
            shift_buffer(self.optimizer, late, -self.ratio * self.x**2)
        if plan.ratio != self.ratio:
            shift_buffer(self.optimizer, params, (self.ratio - plan.ratio) * self.x**2)
            self.ratio = plan.ratio
        changes: dict[str, Any] = {"lr": self._in_kind(group["lr"], plan.lr), "weight_decay": 0.0}
        if not self.rule.decoupled:
            scale_buffers(self.optimizer, params, plan.step.gain_before)
            changes |= {"momentum": plan.step.momentum} if "momentum" in group else {}
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
        """Give the optimizer the gradients in its own units; those of the user are kept aside.

        What nobody has changed since it came is given as it came, bit for bit.
        """
        coupled = not self.rule.decoupled
        others = [p for p in params if is_sharded(p) != coupled] if self.x != 1.0 else []
        self._grads = [(p, p.grad) for p in others if p.grad is not None]
        grads = [grad for _, grad in self._grads]
        for rows in alike(grads):
            converted = torch._foreach_mul([grads[i] for i in rows], self.x if coupled else 1.0 / self.x)
            for i, grad in zip(rows, converted, strict=True):
                param, came = self._grads[i][0], self._arrived.get(self._grads[i][0])
                param.grad = grad if came is None else torch.where(grads[i] == came / self.x, came, grad)
        self._arrived = {}

    def _restore(self) -> None:
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
        params = self.group["params"]
        if not self.rule.decoupled:
            scale_buffers(self.optimizer, [p for p in params if p.grad is not None], step.gain_after)
        self._hold([p for p in params if p.grad is None], step)
        self.x *= 1.0 - step.decrease
        # without momentum there is no buffer for kappa to describe
        self.ratio = step.ratio if step.momentum > 0 else 0.0
        self.record()

    @torch.no_grad()
    def _hold(self, params: list[Tensor], step: Step) -> None:
        """Keep theta and its buffer where the run with weight decay leaves them when there is no gradient: where they were."""
        alpha = 1.0 - step.decrease
        if not self.rule.decoupled:
            scale_buffers(self.optimizer, params, alpha / step.gain_before)
            if step.momentum > 0 and (step.ratio != 0.0 or self.ratio != 0.0):
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
        self._shift(self.ratio * self.x**2)
        self._multiply_gradients(1.0 / self.x)
        self._multiply(1.0 / self.x)
        self.load({})

    def from_weight_decay(self, state: dict[str, Any]) -> None:
        """Map them from the run with weight decay to the gauge of this state: the inverse."""
        self._multiply(state["x"])
        self.load(state)
        self._multiply_gradients(self.x)
        self._shift(-self.ratio * self.x**2)

    def _shift(self, coefficient: float) -> None:
        """Add coefficient * theta~ to the momentum buffers that there are."""
        if coefficient != 0.0:
            held = [p for p in self.group["params"] if self._momentum(p) is not None]
            shift_buffer(self.optimizer, held, coefficient)

    def _multiply_gradients(self, factor: float) -> None:
        """Multiply the gradients that no hook has brought into ordinary units."""
        params = [p for p in self.group["params"] if is_sharded(p)]
        multiply([p.grad for p in params if p.grad is not None], factor)

    def buffers(self) -> list[Tensor]:
        """The converted buffers."""
        found = [] if self.rule.decoupled else [self._momentum(p) for p in self.group["params"]]
        return [buffer for buffer in found if buffer is not None]

    def state(self) -> dict[str, Any]:
        """The numbers to save."""
        numbers = {"x": self.x, "ratio": self.ratio, "doublings": self.doublings}
        return {**numbers, "decoupled": self.rule.decoupled}

    def record(self) -> None:
        """Leave the numbers in the group, once it is converted."""
        if self._hooks is not None:
            self.group[RECORD] = self.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Take the numbers back; without any, those of a run with weight decay."""
        self.x, self.ratio, self.doublings = numbers_in(state)
        self.record()


def numbers_in(state: Mapping[str, Any]) -> tuple[float, float, int]:
    """x, kappa and the doublings of a record; those of a run with weight decay in an empty one."""
    if state == {}:
        return 1.0, 0.0, 0
    with understood(state, "the record of a gauge"):
        x, ratio = checked_number("x", state["x"], above=0.0), checked_number("ratio", state["ratio"])
        return x, ratio, checked_count("doublings", state["doublings"], least=0)


def is_moved(state: dict[str, Any]) -> bool:
    """Whether a gauge with these numbers has other weights or buffers than the run with weight decay."""
    return bool(state["x"] != 1.0 or state["ratio"] != 0.0)
