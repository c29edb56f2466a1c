"""What keeps a model from being scale-invariant, found by running it at W and at 10 W.

At 10 W every number in the net should be what it was, or 10^k times that, with a whole k of its own.
A module that is given such numbers and hands on others is an obstacle. Normalization layers are made
to hand on what they gave at W, so that one obstacle does not hide the next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normcore.evaluation import Evaluator, flat_output
from normcore.homogeneity import NORM_LAYERS
from normcore.lab.reach import hooked, reach, tensors_in, trained_by_name

FACTOR = 10.0
"""What the trained weights are multiplied by."""

TOLERANCE = 1e-6
"""Relative to the norm of a tensor; float64 rounding stays many decades below."""


@dataclass(frozen=True)
class Obstacle:
    """A module or tensor in the way, the reason, and the trained tensors that reach it past every norm."""

    name: str
    reason: str
    tensors: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line."""
        more = f" and {len(self.tensors) - 3} more" if len(self.tensors) > 3 else ""
        names = ", ".join(self.tensors[:3]) + more
        fed = "" if self.tensors in ((), (self.name,)) else f" [trained, no norm in between: {names}]"
        return f"{self.name or 'the model itself'}: {self.reason}{fed}"


def obstacles(model: nn.Module, inputs: Tensor, seed: int = 0) -> list[Obstacle]:
    """Name what keeps the output from staying as it is when all trained weights are multiplied by ten.

    Args:
        model: float64, runs as model(inputs), in the modes it is in. It is used up: its weights and
            buffers move, and so does the random state.
        inputs: a batch.
        seed: of random draws in the forward pass.

    Returns:
        A list, empty where nothing was found.

    Example:
        >>> layers = nn.Linear(4, 8, bias=False), nn.Sigmoid(), nn.LayerNorm(8)
        >>> net = nn.Sequential(*layers).requires_grad_(False).double()
        >>> _ = net[0].requires_grad_(True)
        >>> print(*obstacles(net, torch.randn(3, 4).double()))
        1: Sigmoid is not homogeneous [trained, no norm in between: 0.weight]

    """
    torch.manual_seed(seed)
    straight = reach(model, inputs)
    found = []
    for name in _not_invariant(model, inputs, straight.output, seed):
        also = " (and norm layers too)" if name in straight.norms else ""
        found.append(Obstacle(name, f"reaches the output with no norm behind it{also}", (name,)))
    reasons = _broken(model, inputs, seed)
    fed = reach(model, inputs, list(reasons)).modules
    return found + [Obstacle(name, reason, fed[name]) for name, reason in reasons.items()]


def powers_of_ten(a: Tensor, b: Tensor) -> bool:
    """Whether each number of b is a whole power of ten times that of a, up to rounding of the whole.

    Example:
        >>> a = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
        >>> powers_of_ten(a, a * torch.tensor([1.0, 100.0, 1.0])), powers_of_ten(a, 2 * a)
        (True, False)

    """
    if a.shape != b.shape:
        return False
    ratio = b / a
    target = torch.where(ratio.isfinite() & (ratio > 0), FACTOR ** ratio.log10().round() * a, a)
    return bool((b - target).norm() <= TOLERANCE * b.norm())


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether b = a up to rounding."""
    return a.shape == b.shape and bool((b - a).norm() <= TOLERANCE * a.norm())


def _not_invariant(model: nn.Module, inputs: Tensor, names: Sequence[str], seed: int) -> list[str]:
    """Those of the tensors that change the output when they alone are multiplied by ten."""
    evaluate = Evaluator(model, inputs, seed)
    base, changed = evaluate(), []
    for name in names:
        p = model.get_parameter(name)
        try:
            same = _same(base, evaluate.at([p], [FACTOR * p.detach()]))
        except ValueError:  # not finite
            same = False
        changed += [] if same else [name]
    return changed


@torch.no_grad()
def _broken(model: nn.Module, inputs: Tensor, seed: int) -> dict[str, str]:
    """Name -> reason for each module that is given powers of ten and hands on something else."""
    seen: list[Tensor] = []
    reasons: dict[str, str] = {}
    for before, after in (_recorder(seen), _comparer(seen, reasons)):
        torch.manual_seed(seed)
        with hooked(model, before, after):
            model(inputs)
        torch._foreach_mul_(list(trained_by_name(model).values()), FACTOR)
    return reasons


def _recorder(seen: list[Tensor]) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks that write down what goes into each module and what comes out."""

    def before(name: str, module: nn.Module, args: list[Tensor]) -> None:
        seen.append(_copied(args))

    def after(name: str, module: nn.Module, output: Any) -> None:
        seen.append(output.clone() if isinstance(module, NORM_LAYERS) else _copied(output))

    return before, after


def _comparer(seen: list[Tensor], reasons: dict[str, str]) -> tuple[Callable[..., None], Callable[..., Any]]:
    """Hooks that compare with what was written down."""
    past, inside = iter(seen), []

    def before(name: str, module: nn.Module, args: list[Tensor]) -> None:
        inside.append(powers_of_ten(next(past), _copied(args)))

    def after(name: str, module: nn.Module, output: Any) -> Any:
        given, was, norm = inside.pop(), next(past), isinstance(module, NORM_LAYERS)
        kept = _same(was, output) if norm else powers_of_ten(was, _copied(output))
        part = any(other.startswith(f"{name}." if name else "") for other in reasons)
        if given and not kept and not part:
            reasons.setdefault(name, _reason(module))
        return was.clone() if norm else None

    return before, after


def _copied(values: Any) -> Tensor:
    """A copy of all floating-point numbers as one vector: the next module may write in their place."""
    return flat_output(tensors_in(values)).clone()


def _reason(module: nn.Module) -> str:
    """Why a module that is given powers of ten hands on something else."""
    kind = type(module).__name__
    if isinstance(module, NORM_LAYERS):
        return _norm_reason(module, kind)
    if any(True for _ in module.children()):
        return f"{kind} adds parts that scale differently (a shortcut without a norm), or holds a softmax or the like"
    if isinstance(getattr(module, "bias", None), Tensor):
        return f"{kind} adds a bias to something that scales differently"
    return f"{kind} is not homogeneous"


def _norm_reason(norm: Any, kind: str) -> str:
    """Why a norm layer that is given powers of ten does not hand on what it did."""
    if getattr(norm, "running_mean", None) is not None and not norm.training:
        return f"{kind} in eval mode divides by running statistics, which do not follow the weights"
    if any(p.requires_grad for p in norm.parameters()):
        return f"{kind} has a trained gain or shift"
    if norm.eps is not None and norm.eps > 1e-30:
        return f"{kind} has an eps of {norm.eps:g}, or its input has parts that scale differently"
    return f"the input of {kind} has parts that scale differently"
