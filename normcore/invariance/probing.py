"""Evaluate a model at other weights and on autograd's tape, and leave it exactly as it was."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normcore.checks import checked_pair, checked_seed, require_module, require_type
from normcore.sharded import is_sharded

Forward = Callable[[nn.Module, Any], Any]
Loss = Callable[[Any], Tensor]
Points = tuple[dict[str, Tensor], dict[str, Tensor]]

NATURAL = 0.5
"""Root mean square of a shift or gain at a moved point, if it has less: a tiny one hides, as 0 does."""

FEW = 64
"""Tokens a row that equations are taken on: any input gives some, and short ones are cheap."""


@contextmanager
def untouched(model: nn.Module, *, train: bool | None = None) -> Iterator[None]:
    """Within this context anything may happen to the model; afterwards weights, buffers, gradients, modes and random
    state, Python's and numpy's too, are as before. `train` puts every module into that mode; None leaves the modes.
    """
    tensors = [*model.parameters(), *model.buffers()]
    values = [t.detach().clone() for t in tensors]
    grads = [(p, p.grad) for p in model.parameters()]
    own = [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Generator)]
    states = random.getstate(), np.random.get_state(), [generator.get_state() for generator in own]
    with _state_kept(model, train):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            for generator, state in zip(own, states[2], strict=True):
                generator.set_state(state)
            with torch.no_grad():
                for tensor, value in zip(tensors, values, strict=True):
                    tensor.copy_(value)
            for parameter, grad in grads:
                parameter.grad = grad


@contextmanager
def stand_ins(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within this context the model works, with gradients, on copies of its parameters and buffers in this precision.

    The user's tensors are not touched, nor hooks on them called (an optimizer's gauge, clipping). A model that trains
    keeps the modes of its modules (a frozen BatchNorm stays frozen); one in eval mode is put into train mode.
    """
    twins: dict[nn.Parameter, nn.Parameter] = {}
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []
    train = None if model.training else True
    with torch.inference_mode(False), torch.enable_grad(), _state_kept(model, train):
        try:
            for module in model.modules():
                for key, p in [(key, p) for key, p in module._parameters.items() if p is not None]:
                    if p not in twins:  # tied weights stay one tensor
                        value = converted(p.detach(), dtype).clone()
                        twins[p] = nn.Parameter(value, requires_grad=p.requires_grad)
                    swapped.append((module, key, p))
                    # not into the dict, beside which recurrent layers keep a list
                    setattr(module, key, twins[p])
                buffers = {key: None if b is None else b.clone() for key, b in module._buffers.items()}
                module._buffers.update(converted(buffers, dtype))
            yield
        finally:
            for module, key, p in swapped:
                setattr(module, key, p)


@contextmanager
def _state_kept(model: nn.Module, train: bool | None = None) -> Iterator[None]:
    """Afterwards modes, random state, and which tensors are the buffers are as before."""
    kept = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):  # manual_seed seeds all devices, the model's or not
        try:
            if train is not None:
                model.train(train)
            yield
        finally:
            for module, training, buffers in kept:
                module.training = training
                module._buffers.clear()
                module._buffers.update(buffers)


def mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested values with every tensor changed."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, MutableMapping):
        twin = copy.copy(values)  # of the user's own type
        twin.update({key: mapped(value, change) for key, value in values.items()})
        return twin
    if type(values) in (tuple, list):
        return type(values)(mapped(value, change) for value in values)
    return values


def converted(values: Any, dtype: torch.dtype) -> Any:
    """Nested values, copied where they are of inference mode, with floating-point and complex ones in this precision."""

    def change(t: Tensor) -> Tensor:
        t = t.clone() if t.is_inference() else t
        return t.to(dtype.to_complex() if t.is_complex() else dtype if t.is_floating_point() else t.dtype)

    return mapped(values, change)


def as_real(tensor: Tensor) -> Tensor:
    """The tensor, dense and detached; a complex one as pairs of numbers."""
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense


def precision(model: nn.Module) -> torch.dtype:
    """The widest real dtype among the model's parameters, float32 at least."""
    return reduce(torch.promote_types, (as_real(p).dtype for p in model.parameters()), torch.float32)


def finest(model: nn.Module, x: Any, forward: Forward | None) -> torch.dtype:
    """Float64 if a copy of the model runs in it: one that makes tensors of a fixed dtype does not."""
    own = precision(model)
    with stand_ins(model, torch.float64):
        evaluate = Evaluator(model, converted(x, torch.float64), 0, forward).on_short_rows()
        try:
            evaluate()
        except (RuntimeError, TypeError):
            return own
    return torch.float64


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def checked_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, after a look at the model."""
    require_module(model)
    parameters = trainable(model)
    if not parameters:
        raise ValueError("model must have a trainable parameter, got none")
    if any(is_sharded(p) for p in parameters.values()):
        raise ValueError("model must have whole parameters, got sharded ones: test it before it is sharded")
    return parameters


def inputs_and_targets(batch: Any) -> tuple[Any, Any]:
    """The x and y of a batch: a pair, or a mapping of keyword arguments, whose y is its "labels"."""
    if isinstance(batch, Mapping):
        return batch, batch.get("labels")
    return checked_pair(batch)


def tensors_in(values: Any) -> list[Tensor]:
    """The floating-point tensors in nested sequences and mappings."""
    if isinstance(values, Tensor):
        return [values] if values.is_floating_point() else []
    nested = isinstance(values, Mapping | Sequence) and not isinstance(values, str)
    children = values.values() if isinstance(values, Mapping) else values if nested else ()
    return [tensor for child in children for tensor in tensors_in(child)]


def flat_output(output: Any) -> Tensor:
    """All floating-point tensors of a nested output as one float64 vector."""
    parts = [tensor.detach().double().flatten() for tensor in tensors_in(output)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def tracked(values: Any) -> Any:
    """Nested values on autograd's tape, though not its leaves: a model may change them in place."""
    return mapped(values, lambda t: t.detach().requires_grad_().clone() if t.is_floating_point() else t)


def call(model: nn.Module, x: Any) -> Any:
    """model(x), or the logits of model(**x) for a mapping."""
    if not isinstance(x, Mapping):
        return model(x)
    result = model(**x)
    return getattr(result, "logits", result)


class Called(nn.Module):
    """The model as one that is called as model(x), whatever x is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        """What `call` gives."""
        return call(self.model, x)


class Evaluator:
    """f(weights) of a model on fixed inputs, with the same random draws and buffers at every call."""

    def __init__(self, model: nn.Module, inputs: Any, seed: int, forward: Forward | None = None) -> None:
        require_type("forward", forward, Callable | None, "a function or None")
        self.model, self.inputs, self.seed, self.forward = model, inputs, checked_seed(seed), forward or call
        self.tensors = trainable(model)
        self.eps = max((torch.finfo(t.dtype).eps for t in self.tensors.values()), default=0.0)

    def on_short_rows(self) -> "Evaluator":
        """The same function on the first tokens of each row (integers, of shape (rows, tokens)), if the model takes them."""
        less = copy.copy(self)
        less.inputs = mapped(self.inputs, lambda t: t if t.ndim != 2 or t.is_floating_point() else t[:, :FEW])
        with suppress(Exception):  # of any kind: it is the user's model that cannot
            if less.inputs is not self.inputs:
                less()
            return less
        return self

    def result(self) -> tuple[Any, list[Tensor]]:
        """What the model returns, and the tensors in it that count: the logits where it names them."""
        with _state_kept(self.model):
            torch.manual_seed(self.seed)
            for module in self.model.modules():
                module._buffers.update({k: b if b is None else b.clone() for k, b in module._buffers.items()})
            result = self.forward(self.model, self.inputs)
        outputs = tensors_in(getattr(result, "logits", result))
        if not all(bool(output.isfinite().all()) for output in outputs):
            raise ValueError("model must give finite outputs on the batch, got NaN or infinity")
        return result, outputs

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """The output as a float64 vector."""
        return flat_output(self.result()[1])

    @contextmanager
    def moved(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Within this context the tensors named hold other values."""
        kept = {name: self.tensors[name].detach().clone() for name in values}
        try:
            self._hold(values)
            yield
        finally:
            self._hold(kept)

    @torch.no_grad()
    def _hold(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.tensors[name].copy_(value)

    def distance(self, values: Mapping[str, Tensor], base: Tensor) -> float:
        """How far from `base` the output is with these values."""
        with self.moved(values):
            return float((self() - base).norm())

    def nearby(self, names: Iterable[str], seed: int) -> Points:
        """Two mirror images: weights of natural size at least, moved by a fifth; small shifts and gains drawn anew.

        What is true at every point shows best where each tensor has an effect: at 0 or next to it one hides others.
        """
        first, second = {}, {}
        for i, name in enumerate(names, 1000 + seed):
            p = self.tensors[name].detach()
            root = max(1, p.numel()) ** 0.5
            rms, natural = float(p.norm()) / root, NATURAL if p.dim() <= 1 else p.shape[0] ** 0.5 / root
            hides = rms < natural * (1.0 if p.dim() <= 1 else 1e-2)
            centre = p * (0.0 if hides else max(1.0, natural / rms))
            draw = torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype)
            reach = natural if hides else 0.2 * max(rms, natural)
            size = reach * root / float(draw.norm().clamp_min(1e-30))
            first[name], second[name] = centre + size * draw.to(p), centre - size * draw.to(p)
        return first, second

    def rounding(self, base: Tensor) -> float:
        """How far a change of the weights by some roundings takes the output from `base`, measured: a model may compute
        in another precision than its dtype says. Refuses a function that changes from one evaluation to the next.
        """
        nudged = {name: t.detach() * (1.0 + 16.0 * self.eps) for name, t in self.tensors.items()}
        with self.moved(nudged):
            change = float((self() - base).norm())
            if not all(torch.equal(self.tensors[name], value) for name, value in nudged.items()):
                raise ValueError("model must not set its parameters in a forward pass: run a batch first")
        bound = 1e3 * self.eps * float(base.norm())
        if change > bound and self.distance({}, base) > bound:
            raise ValueError(
                "model must compute the same function twice on one batch: it draws from a generator that is not "
                "torch's, or keeps a state that is no buffer"
            )
        return max(change, 1e-3 * bound, 1e-100)


MULTIPLY = {"Addmm", "Baddbmm", "Bmm", "Convolution", "Dot", "Linear", "Mm", "Mv"}
"""Autograd's nodes that multiply activations by a weight."""

BIAS = {"Addmm": 0, "Baddbmm": 0, "Convolution": 2, "Linear": 2}
"""Which of their inputs is not the weight."""


def roles_in(outputs: Iterable[Tensor], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What each tensor does, by the nodes of the tape that take it: "matrix", "table", "elementwise" or "unused"."""
    takers: dict[Any, list[tuple[Any, int]]] = {}
    pending: list[Any] = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        for slot, source in enumerate(source for source, _ in node.next_functions):
            if source is not None:
                takers.setdefault(source, []).append((node, slot))
            if source is not None and source not in seen:
                seen.add(source)
                pending.append(source)
    leaves = {id(node.variable): node for node in takers if hasattr(node, "variable")}
    found = {name: _roles(leaves.get(id(t)), takers, t.dim()) for name, t in tensors.items()}
    ranks = ("matrix", "table", "elementwise")
    return {name: next((r for r in ranks if r in roles), "unused") for name, roles in found.items()}


def refuse_strays(outputs: Iterable[Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Refuse a model whose outputs, on stand-ins, still depend on its own parameters."""
    strays = [name for name, role in roles_in(outputs, parameters).items() if role != "unused"]
    if strays:
        raise ValueError(
            f"model must take its parameters from its modules, got {strays[0]!r} kept elsewhere too"
        )


def _roles(node: Any, takers: Mapping[Any, list[tuple[Any, int]]], dim: int) -> set[str]:
    roles = set()
    for taker, slot in takers.get(node, []):
        kind, _, number = taker.name().partition("Backward")
        sources = {source for source, _ in taker.next_functions} - {None}
        if kind in MULTIPLY:
            roles.add("elementwise" if BIAS.get(kind) == slot else "matrix")
        elif kind.startswith(("Embedding", "Index", "Gather")):
            roles.add("table")
        elif not number:  # a compiled, checkpointed or user's function, into which we cannot look
            roles.add("matrix" if dim > 1 else "elementwise")
        elif len(sources) == 1:  # a view, a cast, a constant factor: still the tensor itself
            roles |= _roles(taker, takers, dim)
        else:
            roles.add("elementwise")
    return roles
