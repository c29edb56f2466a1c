"""A model as a function of its trainable parameters, fixed at one moment: no call touches the model.

Parameters and buffers are copied; calls run on the copies, in the modes the modules are in, so that batch
statistics, running statistics, gradients and random state of the model stay as they are.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


class Snapshot:
    """Holds leaf copies of the trainable parameters; `call` evaluates the model at any values of them."""

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        """Copy the model's parameters and buffers."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model, self.seed = model, seed
        named = dict(model.named_parameters())
        self.leaves = {n: p.detach().clone().requires_grad_() for n, p in named.items() if p.requires_grad}
        if not self.leaves:
            raise ValueError("model must have a trainable parameter, got none with requires_grad=True")
        self._fixed = {n: p.detach().clone() for n, p in named.items() if not p.requires_grad}
        self._buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
        kinds = {(p.dtype, p.device) for p in self.leaves.values()}
        if len(kinds) > 1 or not next(iter(kinds))[0].is_floating_point:
            raise ValueError(
                f"trainable parameters must share one real dtype and device, got {sorted(map(str, kinds))}"
            )
        self.dtype, self.device = next(iter(kinds))
        self.size = sum(p.numel() for p in self.leaves.values())

    @property
    def tensors(self) -> list[Tensor]:
        """The leaves, in the order of `named_parameters`."""
        return list(self.leaves.values())

    @contextmanager
    def quiet(self, *, derivable: bool = True) -> Iterator[None]:
        """Within this context random draws repeat and are given back, and attention can be derived twice."""
        devices = [self.device] if self.device.type == "cuda" else []
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=devices))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.set_grad_enabled(derivable))
            torch.manual_seed(self.seed)
            yield

    def call(self, inputs: Any, values: Mapping[str, Tensor] | None = None, *, derivable: bool = True) -> Any:
        """The model's output at the leaves, or at other values of them; without a graph unless derivable."""
        buffers = {n: b.clone() for n, b in self._buffers.items()}
        held = {**self._fixed, **buffers, **(self.leaves if values is None else values)}
        with self.quiet(derivable=derivable):
            return functional_call(self.model, held, (inputs,))

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat vector in the shapes of the parameters, by name."""
        pieces = flat.to(self.device, self.dtype).split([p.numel() for p in self.tensors])
        return {n: v.view_as(p) for (n, p), v in zip(self.leaves.items(), pieces, strict=True)}

    def split(self, flat: Tensor) -> list[Tensor]:
        """A flat vector in the shapes of the parameters."""
        return list(self.named(flat).values())

    def without_padding(self, flat: Tensor) -> Tensor:
        """The vector with 0 on the padding rows of embeddings, which torch's gradients treat as constants."""
        owners = Counter(id(p) for _, p in self.model.named_parameters(remove_duplicate=False))
        padded = [
            (f"{name}.weight" if name else "weight", m.padding_idx)
            for name, m in self.model.named_modules()
            if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.padding_idx is not None
            if owners[id(m.weight)] == 1
        ]
        if not any(name in self.leaves for name, _ in padded):
            return flat
        flat = flat.clone()
        for name, row in padded:
            if name in self.leaves:
                self.named(flat)[name][row] = 0.0
        return flat

    def couples_samples(self) -> bool:
        """Whether a module uses batch statistics in its present mode."""
        return any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) and (m.training or m.running_mean is None)
            for m in self.model.modules()
        )


def flatten(tensors: Any) -> Tensor:
    """The tensors as one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def grad(outputs: Any, inputs: list[Tensor], grad_outputs: Any = None, **options: Any) -> tuple[Tensor, ...]:
    """torch.autograd.grad with zeros for inputs without effect."""
    return torch.autograd.grad(outputs, inputs, grad_outputs, materialize_grads=True, **options)


def derivable_once(tensors: Iterable[Tensor]) -> bool:
    """Whether a part of these gradients cannot be derived again.

    autograd.grad goes around the error that torch plants behind a once_differentiable function, and gives 0 there.
    """
    ahead: list[Any] = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(ahead)
    while ahead:
        node = ahead.pop()
        if node.name().endswith("Error"):
            return True
        fresh = {f for f, _ in node.next_functions if f is not None} - seen
        seen |= fresh
        ahead.extend(fresh)
    return False
