"""Follow norms, effective learning rates, angles and the distance to equilibrium of any torch optimizer."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normcore.checks import checked_count, require_type, understood
from normcore.equivalence.gauge import unwrapped
from normcore.equivalence.optimizer import ExpLR
from normcore.equivalence.step_hooks import StepHooks
from normcore.norm_dynamics.rates import rates_of
from normcore.norm_dynamics.readings import COLUMNS, Raw, Readings, columns_of
from normcore.sharded import Totals, is_sharded, part_of_gradient, parts, reshard


class NormMonitor:
    """Log how far the weights of each group and each tensor are from the equilibrium of weight decay.

    Two step hooks read norms at every `every`-th step and leave weights, gradients and state as they are; until
    `close()` they wrap the optimizer's `step`. They cost element-wise work only (one copy of the weights, three norms
    of them, one of the gradients) and never wait for the device (unless lr is itself a tensor on it); `log()` does,
    once. A step counts once, also where torch calls its hooks twice (in a subclass whose `step` calls torch's own) and
    after one that raised.

    Each name of `log()` is "group0/..." or "<tensor's name>/...", followed by

    * norm: |w| after the last reading's step. grad_norm: |g| of that step, as the optimizer gets it (from a closure
      that is called more than once, the first).
    * effective_lr, intrinsic_lr: see the functions of these names. AdamW: lr/|w|, lr*weight_decay.
    * angle: by which that step turned w, radians.
    * rho: mean|dw|^2 over what it is at equilibrium at the same |w|; below 1 the norm falls, above 1 it grows. For
      SGD with coupled decay this is `rho`, without assumptions on the noise; for Nesterov and AdamW it shares
      those of `equilibrium`.
    * grad_sq_norm: mean of S = |g|^2 |w|^2 (AdamW: of the squared norm of the update).
    * equilibrium_norm, equilibrium_angle: what `equilibrium` gives at that S.
    * distance: norm/equilibrium_norm - 1. steps_to_equilibrium: until it is within 5 %.

    Means are exponential ones over the last `horizon` readings. One that is not finite, in a run that diverged,
    shows in norm, grad_norm and angle and leaves the means as they were. The equilibrium is one of scale-invariant
    weights: a tensor (or a group, as a whole) that is not scale-invariant has none, and its rho need not be 1.
    Values are nan where there is no closed form: no weight decay, an optimizer other than SGD and AdamW, or a
    subclass with a step of its own.

    Under FSDP2 (`fully_shard`) attach it after sharding. Norms are those of the whole tensors: each process reads
    its part, and `log()` adds the parts up, as do `state_dict()` and every 256th reading. Call these on all
    processes; all get the same numbers.

    Args:
        optimizer: any torch optimizer; one that wraps another (Accelerate's, say) stands for it.
        model: gives the tensors their names; else they are the optimizer's own names or "group0.0", "group0.1", ...
        every: steps between readings; the first step is read.
        horizon: readings that a running mean looks back over, >= 1. About 1/(intrinsic LR * every) is long
            enough for rho.
        exp_lr: the ExpLR attached to the same optimizer, if there is one: norms, gradients, rates and angles
            are then those of the run with weight decay. Without it they are those of the weights as they stand.

    Raises:
        ValueError: every or horizon is below 1, or exp_lr belongs to another optimizer.
        TypeError: an argument is of another type.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5, weight_decay=0.2)
        >>> monitor = NormMonitor(optimizer)
        >>> (weight[0] / weight.norm()).backward(); optimizer.step()
        >>> log = monitor.log()
        >>> round(log["group0/norm"], 4), round(log["group0/effective_lr"], 5), round(log["group0/rho"], 5)
        (4.5007, 0.02468, 0.05128)

    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None = None,
        *,
        every: int = 1,
        horizon: int = 1000,
        exp_lr: ExpLR | None = None,
    ) -> None:
        optimizer = unwrapped(optimizer)
        require_type("model", model, nn.Module | None, "a torch.nn.Module or None")
        require_type("exp_lr", exp_lr, ExpLR | None, "an ExpLR or None")
        if exp_lr is not None and exp_lr.optimizer is not optimizer:
            raise ValueError("exp_lr must be attached to the same optimizer, got one of another")
        self.optimizer, self.model = optimizer, model
        self._gauges = {} if exp_lr is None else exp_lr.gauges
        self.every, self.horizon = checked_count("every", every), checked_count("horizon", horizon)
        self.steps = 0
        self.last: dict[str, float] = {}
        self._lay_out()
        self._hooks = StepHooks(optimizer, self._before, self._after, self._forget, nested=True)

    def _lay_out(self) -> None:
        groups = self.optimizer.param_groups
        self._params: list[Tensor] = [p for group in groups for p in group["params"]]
        self._previous: list[Tensor] | None = None
        self._zero = torch.zeros((), device=self._params[0].device if self._params else "cpu")
        self._half = any(p.dtype in (torch.float16, torch.bfloat16) for p in self._params)
        self._spread = len({p.device for p in self._params}) > 1
        self._sharded = any(is_sharded(p) for p in self._params)
        if self._sharded and self.model is not None:
            reshard(self.model)  # whole weights, registered after a forward pass, are not the optimizer's
        self._known = {} if self.model is None else {p: name for name, p in self.model.named_parameters()}
        total = Totals(self._params) if self._sharded else None
        sizes = [len(group["params"]) for group in groups]
        self._readings = Readings(sizes, self.horizon, self._zero.device, total)

    def _forget(self) -> None:
        """A step begins, or has raised."""
        self._due = False

    def _before(self) -> None:
        """Keep the weights and read their norms, and the gradients': a step may change both."""
        if self._due or self.steps % self.every:  # due already: a closure is called once more
            return
        self._due = True
        if [len(group["params"]) for group in self.optimizer.param_groups] != self._readings.sizes:
            self._lay_out()
        with torch.no_grad():
            weights = parts(self._params) if self._sharded else self._params
            if self._previous is None:
                self._previous = [torch.empty_like(p) for p in weights]
            if weights:
                torch._foreach_copy_(self._previous, weights)
            self._scales_before = self._scales()
            self._norms_before = self._norms(weights)
            self._grad_norms = self._read_gradients()
            scale = getattr(self.optimizer, "grad_scale", None)  # set by GradScaler for fused optimizers
            self._grad_scale = self._zero + 1.0 if scale is None else scale.to(self._zero.device).reshape(())

    def _after(self) -> None:
        self.steps += 1
        if self._due and self._previous is not None:
            with torch.no_grad():
                self._readings.add(self._reading(self._previous))

    def _reading(self, previous: list[Tensor]) -> Raw:
        scales, weights = self._scales(), parts(self._params) if self._sharded else self._params
        pairs = tuple(zip(self._scales_before, scales, strict=True))
        if scales != self._scales_before:
            sizes = self._readings.sizes
            factors = [a / b for (a, b), size in zip(pairs, sizes, strict=True) for _ in range(size)]
            torch._foreach_mul_(previous, factors)
        if weights:
            torch._foreach_sub_(previous, weights)
        skipped = getattr(self.optimizer, "found_inf", None)
        norms = [
            *self._norms_before,
            *self._grad_norms,
            *self._norms(weights),
            *self._norms(previous),
            self._grad_scale,
            self._zero if skipped is None else skipped.to(self._zero.device).reshape(()),
        ]
        if self._spread:
            norms = [n.to(self._zero.device) for n in norms]
        rates = tuple(rates_of(self.optimizer, group) for group in self.optimizer.param_groups)
        return Raw(torch.stack(norms), rates, pairs)

    def _scales(self) -> list[float]:
        """x of each group: the ordinary weights are x times those in the optimizer."""
        gauges = self._gauges
        return [gauges[i].x if i in gauges else 1.0 for i in range(len(self.optimizer.param_groups))]

    def _norms(self, tensors: list[Tensor]) -> list[Tensor]:
        """The norm of each tensor; half precision is summed in float32."""
        if self._half:
            tensors = [t.float() for t in tensors]
        return list(torch._foreach_norm(tensors)) if tensors else []

    def _read_gradients(self) -> list[Tensor]:
        """The norm of each gradient, 0 where there is none."""
        grads = [part_of_gradient(p) if self._sharded else p.grad for p in self._params]
        dense = [g.coalesce().values() if g.is_sparse else g for g in grads if g is not None]
        found, each = iter(self._norms(dense)), zip(grads, self._factors(), strict=True)
        return [self._zero if g is None else next(found) * factor for g, factor in each]

    def _factors(self) -> list[float]:
        """What brings each gradient to the scale of the weights before the step, as ExpLR's optimizer has it."""
        return [
            self._scales_before[i] if i in self._gauges and self._gauges[i].is_ordinary(p) else 1.0
            for i, group in enumerate(self.optimizer.param_groups)
            for p in group["params"]
        ]

    def log(self) -> dict[str, float]:
        """The last reading and the running means as a flat dict of floats; also kept as `last`.

        This is the one place that waits for the device. Sharded tensors need the call on all processes.

        Raises:
            ValueError: no step has been read yet.

        """
        readings = self._readings
        readings.work_up()
        if not readings.rates:
            raise ValueError("log must be read after a step of the optimizer, got none so far")
        table = torch.cat([readings.last, readings.sums / readings.weight]).cpu().double().numpy()
        names = [*self._names(), *(f"group{i}" for i in range(len(readings.sizes)))]
        columns = {name: np.full(len(names), math.nan) for name in COLUMNS}
        for i, rates in enumerate(readings.rates):
            rows = readings.groups == i
            for name, values in columns_of(rates, table[:, rows]).items():
                columns[name][rows] = values
        self.last = {
            f"{name}/{column}": float(values[row])
            for row, name in enumerate(names)
            for column, values in columns.items()
        }
        return self.last

    def _names(self) -> list[str]:
        names = []
        for i, group in enumerate(self.optimizer.param_groups):
            own = group.get("param_names") or [f"group{i}.{j}" for j in range(len(group["params"]))]
            names += [self._known.get(p, name) for p, name in zip(group["params"], own, strict=True)]
        return names

    def state_dict(self) -> dict[str, Any]:
        """The readings as plain numbers, to save beside the optimizer's own state; call it as `log`."""
        return {"version": 1, "steps": self.steps, "names": self._names(), **self._readings.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: the state is of another version or of other tensors.
            TypeError: it is no state.

        """
        with understood(state, "the state_dict of a NormMonitor"):
            if state["version"] != 1:
                raise ValueError(f"version must be 1, got {state['version']!r}")
            if state["names"] != self._names():
                raise ValueError(f"names must be those of the tensors, {self._names()}, got {state['names']}")
            steps = checked_count("steps", state["steps"], least=0)
            self._readings.load(state)
        self.steps = steps

    def close(self) -> None:
        """Remove the hooks; what has been read can still be logged."""
        self._hooks.remove()
        self._previous = None
