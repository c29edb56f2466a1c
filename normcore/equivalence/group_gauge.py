"""The gauge of one parameter group of a torch optimizer: x_t, kappa_t, and what a step does to them.

The weights in the group are theta~ = theta / x. Below, `x` is the scale relative to the last rebase; the true
one is x * 2^-doublings.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from normcore.checks import columns
from normcore.equivalence.gauge import Step, reset_threshold, step_function

BUFFER_DEGREES = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
"""The optimizer buffers that scale with the gradients, and the degree to which they do."""


class Plan(NamedTuple):
    """What the coming step will do: the gauge's step, the kappa it starts from, and the learning rate."""

    step: Step
    ratio: float
    lr: float


def is_degree_zero(group: dict[str, Any]) -> bool:
    """Whether the group's update does not change when all gradients are scaled (Adam's family, eps aside)."""
    return "betas" in group


def multiply(tensors: list[Tensor], factor: float) -> None:
    """Multiply in place, like with like: torch refuses lists that mix plain and sharded tensors."""
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(getattr(tensor, "device_mesh", None), []).append(tensor)
    for same in kinds.values():
        torch._foreach_mul_(same, factor)


@torch.no_grad()
def scale_buffers(optimizer: Optimizer, params: list[Tensor], factor: float) -> None:
    """Multiply each buffer of degree r of these parameters by factor^r."""
    if factor == 1.0:
        return
    for name, degree in BUFFER_DEGREES.items():
        buffers = [
            optimizer.state[p][name] for p in params if optimizer.state.get(p, {}).get(name) is not None
        ]
        multiply(buffers, factor**degree)


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


class GroupGauge:
    """x_t and kappa_t of one group, with the maps between its two runs."""

    def __init__(self, optimizer: Optimizer, index: int) -> None:
        """Start at x = 1, kappa = 0, where both runs have the same weights and buffers."""
        self.optimizer, self.index = optimizer, index
        self.x, self.ratio, self.doublings = 1.0, 0.0, 0
        self._log_lr: float | None = None
        self._saved: dict[str, Any] | None = None
        self._plan: Plan | None = None

    @property
    def group(self) -> dict[str, Any]:
        """The optimizer's group (looked up, since load_state_dict replaces it)."""
        return self.optimizer.param_groups[self.index]

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

    def plan(self) -> Plan:
        """Compute the coming step from the hyper-parameters as the user set them; changes nothing."""
        group, zero = self.group, is_degree_zero(self.group)
        lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
        momentum = 0.0 if zero else float(group["momentum"])
        columns(1, lr=lr, weight_decay=weight_decay, momentum=momentum)
        fresh = [self.optimizer.state.get(p, {}).get("momentum_buffer") is None for p in group["params"]]
        dampening = 0.0 if zero or all(fresh) else float(group["dampening"])
        self._check_momentum(momentum, dampening, fresh, zero)
        nesterov = not zero and bool(group["nesterov"])
        if nesterov and lr * weight_decay * (1 + momentum) >= 1:
            raise ValueError(
                f"weight_decay must keep lr*weight_decay*(1+momentum) < 1, got lr={lr!r}, weight_decay={weight_decay!r}"
            )
        advance = step_function(nesterov=nesterov, decoupled=zero)
        ratio = self.ratio
        step = advance(ratio, lr, weight_decay, momentum, dampening)
        if ratio != 0.0 and 1.0 - step[0] < reset_threshold(momentum, lr, weight_decay, nesterov=nesterov):
            ratio = 0.0
            step = advance(ratio, lr, weight_decay, momentum, dampening)
        x_next = self.x * (1.0 - step[0])
        product = x_next if zero else self.x * x_next
        if product == 0.0:
            raise OverflowError(
                f"the exponential rate leaves the float range at log x_t = {self.log_scale:.4g}; use rebase=True"
            )
        return Plan(step, ratio, lr * step[2] / product)

    def _check_momentum(self, momentum: float, dampening: float, fresh: list[bool], zero: bool) -> None:
        """Refuse the two states of torch's momentum buffer that the gauge does not follow."""
        if not zero and momentum == 0.0 and not all(fresh):
            raise ValueError(
                "momentum must stay > 0 once a momentum buffer exists, got 0.0: torch would leave the buffer stale"
            )
        if dampening != 0.0 and any(fresh):
            raise ValueError(
                f"dampening must be 0 while a parameter of the group has no momentum buffer yet, got {dampening!r}"
            )

    def enter(self, plan: Plan) -> None:
        """Put the group into the run without weight decay for one step."""
        group, params = self.group, self.group["params"]
        if self.ratio != 0.0:
            self._create_buffers()
        if plan.ratio != self.ratio:
            shift_buffer(self.optimizer, params, (self.ratio - plan.ratio) * self.x**2)
            self.ratio = plan.ratio
        scale_buffers(self.optimizer, params, plan.step[4])
        changes = {"lr": plan.lr, "weight_decay": 0.0}
        if is_degree_zero(group):
            changes["eps"] = group["eps"] * self.x
        else:
            changes["momentum"] = plan.step[3]
        self._saved = {name: group[name] for name in changes}
        self._plan = plan
        group.update(changes)

    def _create_buffers(self) -> None:
        """Give a parameter that has not had a gradient yet the buffer -p theta that stands for an ordinary buffer of 0."""
        late = [
            p for p in self.group["params"] if self.optimizer.state.get(p, {}).get("momentum_buffer") is None
        ]
        if late:
            shift_buffer(self.optimizer, late, -self.ratio * self.x**2)

    def restore(self) -> None:
        """Give the group back as the user set it."""
        if self._saved is not None:
            self.group.update(self._saved)
            self._saved = None

    def leave(self) -> None:
        """Close the step: restore the group, treat parameters that did not move, and advance x and kappa."""
        self.restore()
        if self._plan is None:
            return
        (decrease, ratio, _, momentum, before, after), _, lr = self._plan
        self._plan = None
        params = self.group["params"]
        still = [p for p in params if p.grad is None]
        scale_buffers(self.optimizer, [p for p in params if p.grad is not None], after)
        alpha = 1.0 - decrease
        if still:
            self._hold(still, alpha, ratio, before)
        self._log_lr = (math.log(lr) if lr > 0 else -math.inf) + self.doublings * math.log(2.0) * (
            1 if is_degree_zero(self.group) else 2
        )
        self.x *= alpha
        self.ratio = (
            ratio if momentum > 0 else 0.0
        )  # without momentum there is no buffer for kappa to describe

    @torch.no_grad()
    def _hold(self, params: list[Tensor], alpha: float, ratio: float, before: float) -> None:
        """Keep theta and its buffer where the run with weight decay leaves them when there is no gradient: where they were."""
        scale_buffers(self.optimizer, params, alpha / before)
        if ratio != 0.0 or self.ratio != 0.0:
            shift_buffer(self.optimizer, params, alpha * self.x**2 * (self.ratio - ratio))
        multiply(params, 1.0 / alpha)

    def rebase(self) -> None:
        """Bring x back into [1/2, 1) by powers of two: exact in binary floats, whatever the run."""
        if self.x < 0.5:
            doublings = -math.frexp(self.x)[1]
            self._multiply(2.0**doublings)
            self.doublings += doublings

    @torch.no_grad()
    def _multiply(self, factor: float) -> None:
        """Multiply x by the factor: theta~ shrinks by it, a buffer of degree r grows by its power r."""
        multiply(self.group["params"], 1.0 / factor)
        scale_buffers(self.optimizer, self.group["params"], factor)
        self.x *= factor

    def to_weight_decay(self) -> None:
        """Map weights and buffers back to the run with weight decay: x = 1, kappa = 0."""
        self.restore()
        if self.ratio != 0.0:
            held = [
                p
                for p in self.group["params"]
                if self.optimizer.state.get(p, {}).get("momentum_buffer") is not None
            ]
            shift_buffer(self.optimizer, held, self.ratio * self.x**2)
        self._multiply(1.0 / self.x)
        self.x, self.ratio, self.doublings = 1.0, 0.0, 0

    def state(self) -> dict[str, float | int]:
        """The numbers to save."""
        return {"x": self.x, "ratio": self.ratio, "doublings": self.doublings}

    def load(self, state: dict[str, float | int]) -> None:
        """Take the numbers back."""
        self.restore()
        self.x, self.ratio, self.doublings = float(state["x"]), float(state["ratio"]), int(state["doublings"])
