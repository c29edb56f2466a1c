"""Evaluate a model at moved weights and leave it exactly as it was."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module, *, train: bool | None = None) -> Iterator[None]:
    """Within this context anything may happen to the model; afterwards weights, buffers, gradients, modes and random state are as before.

    Args:
        model: any module.
        train: True or False puts every module into that mode; None leaves the modes.

    """
    tensors = [*model.parameters(), *model.buffers()]
    values = [t.detach().clone() for t in tensors]
    grads = [(p, p.grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    registered = [(module, dict(module._buffers)) for module in model.modules()]
    with torch.random.fork_rng(devices=_cuda_devices()):
        try:
            if train is not None:
                model.train(train)
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, values, strict=True):
                    tensor.copy_(value)
            for parameter, grad in grads:
                parameter.grad = grad
            for module, training in modes:
                module.training = training
            for module, buffers in registered:  # a forward pass may put new tensors in their place
                module._buffers.clear()
                module._buffers.update(buffers)


def _cuda_devices() -> list[int]:
    """The CUDA devices in use: torch.manual_seed seeds them all, the model's or not."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


def tensors_in(values: Any) -> list[Tensor]:
    """The floating-point tensors in nested sequences and mappings."""
    if isinstance(values, Tensor):
        return [values] if values.is_floating_point() else []
    if isinstance(values, str):
        return []
    children = (
        values.values() if isinstance(values, Mapping) else values if isinstance(values, Sequence) else []
    )
    return [tensor for child in children for tensor in tensors_in(child)]


def flat_output(output: Any) -> Tensor:
    """All floating-point tensors of a nested output as one float64 vector."""
    parts = [tensor.detach().double().flatten() for tensor in tensors_in(output)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


class Evaluator:
    """f(weights) of a model on fixed inputs, with the same random draws at every call."""

    def __init__(self, model: nn.Module, inputs: Any, seed: int) -> None:
        self.model, self.inputs, self.seed = model, inputs, seed

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """The output as a float64 vector."""
        torch.manual_seed(self.seed)
        output = flat_output(self.model(self.inputs))
        if not output.isfinite().all():
            raise ValueError("model must give finite outputs on the batch, got NaN or infinity")
        return output

    @contextmanager
    def moved(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
        """Within this context the tensors hold other values."""
        kept = [t.detach().clone() for t in tensors]
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, kept, strict=True):
                    tensor.copy_(value)

    def at(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """The output with these values in place of these tensors."""
        with self.moved(tensors, values):
            return self()


def joint_norm(tensors: Sequence[Tensor]) -> float:
    """The norm of the concatenated tensors."""
    return math.sqrt(sum(float(t.detach().double().pow(2).sum()) for t in tensors))


def random_like(tensors: Sequence[Tensor], norm: float, seed: int) -> list[Tensor]:
    """Random tensors of these shapes with the given joint norm, from their own generator."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in tensors]
    scale = norm / max(joint_norm(draws), torch.finfo(torch.float64).tiny)
    return [(draw * scale).to(t) for draw, t in zip(draws, tensors, strict=True)]
