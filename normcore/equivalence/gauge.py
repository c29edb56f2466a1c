"""One vocabulary of update rules, and one step of the gauge recursion: the optimizer itself on a scalar without gradient.

Let x_t be that scalar and p_t its momentum buffer. The weights of a run with weight decay, divided by x_t,
are the weights of a run without it, at another learning rate. Only the ratios alpha = x_{t+1}/x_t and kappa_t
= p_t/x_t enter, so that the recursion neither overflows nor underflows. Here is what one step does to them;
`schedule` turns it into whole schedules and `optimizer` attaches it to an optimizer.
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam

from normcore.checks import checked_choice, checked_count, columns

MUON: tuple[type[Optimizer], ...] = (torch.optim.Muon,) if hasattr(torch.optim, "Muon") else ()


@dataclass(frozen=True)
class UpdateRule:
    """The properties of an optimizer that decide how weight decay and learning rate replace one another.

    Args:
        decoupled: weight decay acts beside the update, w <- (1 - lr weight_decay) w - lr update, and not
            through the gradient.
        nesterov: the update looks ahead along the momentum buffer, as torch's does.
        degree: of the update in the gradients: 1 for SGD; 0 for AdamW, Lion, signs and orthogonalised updates,
            which do not change when all gradients are multiplied by a number.

    Raises:
        ValueError: degree is not 0, 1 or 2, or not 1 although the decay is coupled.

    """

    decoupled: bool
    nesterov: bool = False
    degree: int = 1

    def __post_init__(self) -> None:
        if checked_count("degree", self.degree, least=0) > 2:
            raise ValueError(f"degree must be 0, 1 or 2, got {self.degree!r}")
        if self.degree != 1 and not self.decoupled:
            raise ValueError(
                f"degree must be 1 unless decoupled=True, got {self.degree!r}: "
                "coupled decay inside such an update has no gauge"
            )

    @property
    def power(self) -> int:
        """The power of |w| that relaxes to equilibrium at the rate power * intrinsic LR: 4 for SGD, 2 at degree 0."""
        return 2 * (self.degree + 1)


RULES = {
    "sgd": UpdateRule(decoupled=False),
    "nesterov": UpdateRule(decoupled=False, nesterov=True),
    "sgdw": UpdateRule(decoupled=True),
    "adamw": UpdateRule(decoupled=True, degree=0),
    "lion": UpdateRule(decoupled=True, degree=0),
    "muon": UpdateRule(decoupled=True, degree=0),
    "degree0": UpdateRule(decoupled=True, degree=0),
}
"""Name -> rule. "sgd" is heavy ball too; "degree0" any decoupled update whose size the gradients do not set."""


def look_up(name: str) -> UpdateRule:
    """The rule of that name."""
    return RULES[checked_choice("rule", name, sorted(RULES))]


def rule_of(optimizer: Optimizer, group: dict[str, Any]) -> str | None:
    """The name of the rule that a torch optimizer applies to one of its groups.

    None where none of `RULES` holds (coupled Adam, LBFGS, ...), and for a class with a `step` of its own, whatever
    it inherits from.
    """
    kind: Any = type(optimizer)
    stock = _stock(kind)
    if stock == "sgd":
        return "nesterov" if group["nesterov"] else "sgd"
    if stock in ("adamw", "degree0"):
        decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, AdamW))
        return stock if decoupled else None
    return stock


@functools.cache
def _stock(kind: Any) -> str | None:
    """Which of torch's own steps, wrapped in hooks and more, the class has: the rule it may follow."""
    own = inspect.unwrap(kind.step)
    names = {"sgd": (SGD,), "adamw": (Adam, AdamW), "degree0": (NAdam, RAdam), "muon": MUON}
    for name, classes in names.items():
        if any(issubclass(kind, stock) and own is inspect.unwrap(stock.step) for stock in classes):
            return name
    return None


def unwrapped(optimizer: Any) -> Optimizer:
    """The torch optimizer itself, also of what a trainer has wrapped around it and keeps it in as `.optimizer`."""
    inner = optimizer
    while isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = inner.optimizer
    if not isinstance(inner, Optimizer):
        raise TypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
    return inner


def check_supported(optimizer: Optimizer) -> None:
    """Raise TypeError for an optimizer whose weight decay has no gauge, or whose update rule is not known."""
    if all(rule_of(optimizer, group) for group in optimizer.param_groups):
        return
    reason = "no gauge is known for it"
    if isinstance(optimizer, Adam):
        reason = "its coupled L2 term enters the second moment; use AdamW"
    if rule_of(optimizer, {"nesterov": False, "decoupled_weight_decay": True}) is None:
        reason += "; if its step follows a rule that you know, say so: rule='sgd', 'lion', ..."
    raise TypeError(f"optimizer must be torch.optim.SGD or AdamW, got {type(optimizer).__name__}: {reason}")


class Step(NamedTuple):
    """What one step does to the gauge, and what the run without weight decay has to do in it."""

    decrease: float
    """1 - alpha."""
    ratio: float
    """The new kappa."""
    rate_gain: float
    """The factor in lr~ = lr * rate_gain / (x_t x_{t+1})."""
    momentum: float
    gain_before: float
    """The factor on the momentum buffer before the step."""
    gain_after: float


def coupled_step(ratio: float, lr: float, weight_decay: float, momentum: float, dampening: float) -> Step:
    """SGD whose weight decay enters the gradient.

    The step is v <- momentum v + (1-dampening)(g + wd theta), theta <- theta - lr v.
    """
    shift = momentum * ratio + (1.0 - dampening) * weight_decay
    decrease = lr * shift
    return Step(decrease, shift / (1.0 - decrease), 1.0, momentum, 1.0, 1.0)


def nesterov_step(ratio: float, lr: float, weight_decay: float, momentum: float, dampening: float) -> Step:
    """The same with torch's Nesterov step theta <- theta - lr (g + wd theta + momentum v): all three coefficients move."""
    shift = momentum * ratio + weight_decay
    decrease = lr * (weight_decay + momentum * shift)
    alpha, kept = 1.0 - decrease, 1.0 - lr * weight_decay
    gain = 1.0 + momentum * lr * ratio
    return Step(decrease, shift / alpha, alpha / kept, momentum * gain / alpha, kept * alpha / gain**2, gain)


def decoupled_step(ratio: float, lr: float, weight_decay: float, momentum: float, dampening: float) -> Step:
    """Decay outside the update, theta <- (1 - lr wd) theta - lr update: SGDW, AdamW, Lion, sign updates."""
    decrease = lr * weight_decay
    return Step(decrease, ratio, 1.0, momentum, 1.0, 1.0 - decrease)


Advance = Callable[[float, float, float, float, float], tuple[float, Step]]


def advance_by(rule: UpdateRule) -> Advance:
    """The step of this rule from a given kappa; beside it the kappa it starts from, 0 where the gauge must be reset."""
    step = decoupled_step if rule.decoupled else nesterov_step if rule.nesterov else coupled_step

    def advance(
        ratio: float, lr: float, weight_decay: float, momentum: float, dampening: float
    ) -> tuple[float, Step]:
        taken = step(ratio, lr, weight_decay, momentum, dampening)
        # no threshold lies above 1/2; most steps need not compute theirs
        if taken.decrease <= 0.5 or ratio == 0.0:
            return ratio, taken
        if 1.0 - taken.decrease < reset_threshold(momentum, lr, weight_decay, nesterov=rule.nesterov):
            return 0.0, step(0.0, lr, weight_decay, momentum, dampening)
        return ratio, taken

    return advance


def reset_threshold(momentum: float, lr: float, weight_decay: float, *, nesterov: bool) -> float:
    """The alpha below which the gauge is reset to kappa = 0.

    At or below the critical point lr wd = (1-sqrt(momentum))^2 alpha stays above the modulus of the roots,
    sqrt(momentum) (with Nesterov sqrt(momentum (1 - lr wd))), at constant hyper-parameters. Half of it is
    never reached there, and beyond the critical point it is crossed long before x would turn negative.
    """
    modulus_squared = momentum * (1.0 - lr * weight_decay) if nesterov else momentum
    return 0.5 * math.sqrt(max(modulus_squared, 0.0))


def growth_factor(lr: float, weight_decay: float, momentum: float = 0.0) -> float:
    """The root alpha by which a constant schedule shrinks x_t each step; the rate grows by alpha^-2.

    alpha is the larger root of x^2 - (1 + momentum - lr*weight_decay) x + momentum = 0. Coupled decay;
    constant hyper-parameters.

    Args:
        lr: learning rate, >= 0.
        weight_decay: >= 0.
        momentum: in [0, 1).

    Returns:
        alpha, in (0, 1].

    Raises:
        ValueError: an argument breaks its condition, or lr*weight_decay > (1-sqrt(momentum))^2, beyond which
            no real root exists.

    Example:
        >>> alpha = growth_factor(0.1, 5e-4, 0.9)
        >>> round(alpha ** (-2 * 391), 5)  # the growth in an epoch of 391 steps
        1.48123

    Source: Li & Arora (2020), arXiv 1910.07454, Theorem 2.9.

    """
    given = columns(1, lr=lr, weight_decay=weight_decay, momentum=momentum)
    lr, weight_decay, momentum = (column.item() for column in given)
    product = lr * weight_decay
    critical = (1.0 - math.sqrt(momentum)) ** 2
    if not 0.0 <= product <= critical:
        raise ValueError(
            f"lr*weight_decay must lie in [0, (1-sqrt(momentum))^2] = [0, {critical:.6g}], got {product:.6g} "
            f"(lr={lr!r}, weight_decay={weight_decay!r}, momentum={momentum!r}): beyond it the roots are complex"
        )
    # (sqrt(c) + sqrt(m))^2 and so on: the product form of the discriminant keeps its digits near the critical point.
    discriminant = (critical - product) * ((1.0 + math.sqrt(momentum)) ** 2 - product)
    return 1.0 - 2.0 * product / (1.0 - momentum + product + math.sqrt(discriminant))
