"""One vocabulary of optimizers: what their update does with weight decay and with the size of the gradients."""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam

from normcore.checks import checked_choice, checked_count

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

    Example:
        >>> RULES["adamw"]
        UpdateRule(decoupled=True, nesterov=False, degree=0)

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
    """The torch optimizer itself, of one that a trainer has wrapped and keeps as `.optimizer`.

    Raises:
        TypeError: there is none.

    """
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
