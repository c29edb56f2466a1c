"""Two moments of an optimizer's step, right before it updates the weights and after; and a step that must not be taken."""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from normcore.equivalence.group_gauge import GAUGE_OF, RECORD, is_moved


class StepHooks:
    """Call `enter` before an optimizer updates, `leave` after it, and `undo` where it raises, each once a step.

    A closure is run before `enter`: it sees what the user set, and may raise. With `nested` the step of a class that
    calls its parent's step is one step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        enter: Callable[[], None],
        leave: Callable[[], None],
        undo: Callable[[], None],
        *,
        nested: bool,
    ) -> None:
        self.optimizer, self.enter, self.leave, self.undo, self.nested = optimizer, enter, leave, undo, nested
        self.depth = 0
        self._handles = [
            optimizer.register_step_pre_hook(torch.compiler.disable(self._before)),
            optimizer.register_step_post_hook(torch.compiler.disable(self._after)),
        ]
        self._step = vars(optimizer).get("step")
        self._guarded = self._guard()

    def _guard(self) -> Callable[..., Any]:
        """Have a step that raises undone at once; torch's hooks are not told of it."""
        step = self.optimizer.step

        @functools.wraps(getattr(step, "__func__", step))
        def guarded(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            self.depth = 0
            try:
                return step(*args, **kwargs)
            except BaseException:
                self.depth = 0
                self.undo()
                raise

        self.optimizer.step = types.MethodType(guarded, self.optimizer)  # type: ignore[method-assign]
        return guarded

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Enter, or have the closure do it when it has come to its end."""
        self.depth = self.depth + 1 if self.nested else 1
        if self.depth > 1:
            return None
        self.undo()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self.enter()
            return None

        def closure_then_enter() -> Any:
            loss = closure()
            self.enter()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": closure_then_enter}
        return (args[0], closure_then_enter, *args[2:]), kwargs

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.leave()

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        for handle in self._handles:
            handle.remove()
        if getattr(vars(self.optimizer).get("step"), "__func__", None) is self._guarded:
            del self.optimizer.step
            vars(self.optimizer).update({} if self._step is None else {"step": self._step})


def _refuse_copies(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Raise where a step would take converted weights for ordinary ones: in a copy that no ExpLR is attached to."""
    for group in optimizer.param_groups:
        converted = RECORD in group and is_moved(group[RECORD])
        gauge = GAUGE_OF.get(id(group["params"][0])) if converted else None
        if converted and (gauge is None or gauge.optimizer is not optimizer):
            raise ValueError(
                "optimizer must have an ExpLR attached, got one with weights that ExpLR has converted (a copy, or loaded): "
                "attach ExpLR(optimizer, model), which goes on from there, and detach() it for weight decay"
            )


register_optimizer_step_pre_hook(_refuse_copies)
