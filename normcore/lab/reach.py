"""Which trained tensors reach the output, a norm layer or a module with no norm layer in between."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normcore.homogeneity import NORM_LAYERS


@dataclass(frozen=True)
class Reach:
    """Names of the trained tensors that arrive at the output, at norm layers and at modules asked for.

    A tensor that arrives nowhere is not used in the forward pass.
    """

    output: tuple[str, ...]
    norms: tuple[str, ...]
    modules: dict[str, tuple[str, ...]]


def reach(model: nn.Module, inputs: Any, modules: Sequence[str] = ()) -> Reach:
    """Follow the trained tensors through one forward pass in which every norm layer cuts the graph.

    Args:
        model: runs as model(inputs), in the modes it is in; buffers and the random state move.
        inputs: a batch.
        modules: names of modules whose outputs to look at, too.

    Returns:
        Reach; what a norm layer itself holds does not count.

    Example:
        >>> layers = nn.Linear(4, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 2)
        >>> found = reach(nn.Sequential(*layers), torch.randn(3, 4), ["0"])
        >>> found.output, found.norms, found.modules
        (('2.weight', '2.bias'), ('0.weight',), {'0': ('0.weight',)})

    """
    sums: dict[str, list[Tensor]] = {name: [] for name in modules}
    into_norms: list[Tensor] = []

    def before(name: str, module: nn.Module, args: list[Tensor]) -> None:
        if isinstance(module, NORM_LAYERS):
            into_norms.extend(z.sum() for z in args)

    def after(name: str, module: nn.Module, output: Any) -> Any:
        if name in sums:
            sums[name] += [z.sum() for z in tensors_in(output)]
        return output.detach() if isinstance(module, NORM_LAYERS) else None

    with torch.enable_grad(), hooked(model, before, after):
        output = [z.sum() for z in tensors_in(model(inputs))]
    trained = trained_by_name(model)
    arrived = {name: _sources(numbers, trained) for name, numbers in sums.items()}
    return Reach(_sources(output, trained), _sources(into_norms, trained), arrived)


def trained_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def tensors_in(values: Any) -> list[Tensor]:
    """The floating-point tensors in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        return [values] if values.is_floating_point() else []
    children = values.values() if isinstance(values, dict) else values
    return [t for v in children for t in tensors_in(v)] if isinstance(values, dict | list | tuple) else []


@contextmanager
def hooked(
    model: nn.Module,
    before: Callable[[str, nn.Module, list[Tensor]], None],
    after: Callable[[str, nn.Module, Any], Any],
) -> Iterator[None]:
    """Call before(name, module, tensors) and after(name, module, output) around every module.

    What `after` returns, if not None, takes the place of the output.
    """
    handles = []
    for name, module in model.named_modules():

        def pre(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            before(name, module, tensors_in([*args, *kwargs.values()]))

        def post(module: nn.Module, args: Any, output: Any, name: str = name) -> Any:
            return after(name, module, output)

        handles.append(module.register_forward_pre_hook(pre, with_kwargs=True))
        handles.append(module.register_forward_hook(post))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sources(numbers: Sequence[Tensor], trained: dict[str, nn.Parameter]) -> tuple[str, ...]:
    """Names of the tensors that these numbers depend on."""
    numbers = [z for z in numbers if z.requires_grad]
    if not (numbers and trained):
        return ()
    grads = torch.autograd.grad(numbers, list(trained.values()), allow_unused=True, retain_graph=True)
    return tuple(name for name, grad in zip(trained, grads, strict=True) if grad is not None)
