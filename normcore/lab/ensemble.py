"""Many models of one architecture trained at once: stacked weights, and rates of its own for each model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from normcore.lab.fingerprint import fingerprint

Batch = tuple[Tensor, Tensor]
Batches = Sequence[Batch]
Rates = NDArray[np.float64]

UNFIT = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase)
"""Layers that draw random numbers, which stacked models would share, or keep their weights where vmap cannot put its own."""

BARE = frozenset(vars(nn.Module()))


def architecture(model: nn.Module) -> str:
    """Hash what a model computes from its weights: models of equal architecture can be stacked.

    Example:
        >>> a, b, c = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3, bias=False)
        >>> architecture(a) == architecture(b), architecture(a) == architecture(c)
        (True, False)

    """
    parts = list[Any]()
    for name, module in model.named_modules():
        hooks = {key: value for key, value in vars(module).items() if key.endswith("hooks") and value}
        fields = {key: value for key, value in vars(module).items() if key not in BARE}
        parts.append((name, type(module), module.training, fields, hooks))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        parts.append((name, tuple(tensor.shape), tensor.dtype, tensor.requires_grad))
    return fingerprint(parts)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Losses (T, K), nan after a divergence, and for each model the step at which it diverged, or None."""

    loss: Rates
    diverged_at: list[int | None]


def train_ensemble(
    models: Sequence[nn.Module],
    batches: Sequence[Batches],
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    lr: Rates,
    weight_decay: Rates,
    momentum: Rates,
) -> Outcome:
    """Train models of one architecture by SGD, all in one pass, in place.

    g <- g + weight_decay w, m <- momentum m + g, w <- w - lr m, as torch.optim.SGD does it, with numbers of its
    own for each model and step. A model whose loss is not finite leaves the stack before that step.

    Convention: decay coupled; the first buffer is the first gradient; without momentum the buffer rests.

    Args:
        models: K of equal `architecture`, in the mode they are in; running statistics are kept.
        batches: for each model its (x, y) of step 0, 1, ...; those of one model may be those of another,
            and are then not copied.
        loss_fn: of (model(x), y), a scalar.
        lr: (K, T).
        weight_decay: (K, T).
        momentum: (K, T).

    Returns:
        Outcome.

    Raises:
        ValueError: a layer cannot be stacked: dropout in training mode, or a recurrent one.

    Example:
        >>> from normcore.lab import mlp
        >>> models = [mlp((4, 8, 3), seed=seed) for seed in (0, 0)]
        >>> batches = [(torch.randn(6, 4), torch.arange(6) % 3)] * 5
        >>> rates, none = np.array([[0.1] * 5, [0.2] * 5]), np.zeros((2, 5))
        >>> loss = train_ensemble(
        ...     models, [batches] * 2, loss_fn=nn.functional.cross_entropy, lr=rates, weight_decay=none, momentum=none
        ... ).loss
        >>> loss.shape, bool(loss[0, 0] == loss[0, 1]), bool(loss[4, 0] == loss[4, 1])
        ((5, 2), True, False)

    """
    count, steps = lr.shape
    stack = _Stack(models, np.stack([lr, weight_decay, momentum]))
    outcome = Outcome(np.full((steps, count), np.nan), [None] * count)
    gradients = _gradients(models[0], stack, loss_fn)
    for t in range(steps):
        grads, losses = gradients(stack.trained, stack.rest, *_batch(batches, stack.alive, t))
        loss = losses.detach().cpu().numpy()
        outcome.loss[t, stack.alive] = loss
        finite = np.isfinite(loss)
        if not finite.all():
            for k in np.array(stack.alive)[~finite].tolist():
                outcome.diverged_at[k] = t
            grads = stack.keep(finite, grads)
            if not stack.alive:
                return outcome
        stack.step(grads, t)
    stack.write_back(range(len(stack.alive)))
    return outcome


class _Stack:
    """The weights, buffers, rates and momentum of the models that are still finite."""

    def __init__(self, models: Sequence[nn.Module], rates: NDArray[np.float64]) -> None:
        """Copy them."""
        for name, module in models[0].named_modules():
            if isinstance(module, UNFIT) and module.training:
                raise ValueError(f"layer {name!r} must not be random or recurrent in a stack, got {module}")
        self.models, self.alive = list(models), list(range(len(models)))
        named = [(name, p.requires_grad) for name, p in models[0].named_parameters()]
        self.names = [name for name, trained in named if trained]
        self.others = [name for name, trained in named if not trained]
        self.others += [name for name, _ in models[0].named_buffers()]
        states = [dict((*model.named_parameters(), *model.named_buffers())) for model in models]
        self.trained, self.rest = (
            [torch.stack([state[name].detach() for state in states]) for name in names]
            for names in (self.names, self.others)
        )
        self.momentum: list[Tensor] = [torch.zeros_like(w) for w in self.trained] if rates[2].any() else []
        self.rates = [torch.tensor(table.T.copy(), device=self.trained[0].device) for table in rates]
        self._plan(rates)

    def _plan(self, rates: NDArray[np.float64]) -> None:
        """Whether a step has decay, momentum, and models without momentum among others."""
        moving = (rates[2] != 0).any(axis=0)
        self.decays, self.moves = (rates[1] != 0).any(axis=0), moving
        self.mixed = moving & (rates[2] == 0).any(axis=0)

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], t: int) -> None:
        """One step of SGD with numbers of its own for each model."""
        for i, (weight, grad) in enumerate(zip(self.trained, grads, strict=True)):
            shape = (-1, *[1] * (weight.ndim - 1))
            rate, decay, factor = (table[t].to(weight.dtype).view(shape) for table in self.rates)
            if self.decays[t]:
                grad = torch.addcmul(grad, weight, decay)
            if self.moves[t]:
                buffer = self.momentum[i]
                grad = torch.addcmul(grad, buffer, factor)  # where the factor is 0: the gradient itself
                self.momentum[i] = torch.where(factor != 0, grad, buffer) if self.mixed[t] else grad
            weight.addcmul_(grad, rate, value=-1)

    @torch.no_grad()
    def keep(self, finite: NDArray[np.bool_], grads: Sequence[Tensor]) -> list[Tensor]:
        """Let the other models go, as they are; returns the gradients of those that stay."""
        self.write_back(np.flatnonzero(~finite).tolist())
        places = torch.tensor(np.flatnonzero(finite), device=self.trained[0].device)
        self.alive = [k for k, stays in zip(self.alive, finite, strict=True) if stays]
        self.rates = [table[:, places] for table in self.rates]
        for tensors in (self.trained, self.rest, self.momentum):
            tensors[:] = [tensor[places] for tensor in tensors]
        return [grad[places] for grad in grads]

    @torch.no_grad()
    def write_back(self, places: Sequence[int]) -> None:
        """Copy the state at some places of the stack into their models."""
        stacked = dict(zip((*self.names, *self.others), (*self.trained, *self.rest), strict=True))
        for place in places:
            model = self.models[self.alive[place]]
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.copy_(stacked[name][place])


def _gradients(
    model: nn.Module, stack: _Stack, loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> Callable[..., Any]:
    """Gradients and losses of all models, on one batch for all or on stacked ones."""
    places = _places(model, (*stack.names, *stack.others))

    def loss_of(trained: list[Tensor], rest: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        own = [store[key] for store, key, _ in places]
        tensors = (*trained, *rest)
        try:
            for store, key, number in places:
                store[key] = tensors[number]
            return loss_fn(model(x), y)
        finally:
            for (store, key, _), tensor in zip(places, own, strict=True):
                store[key] = tensor

    mapped = {own: vmap(grad_and_value(loss_of), in_dims=(0, 0, own, own)) for own in (None, 0)}
    return lambda trained, rest, x, y, own: mapped[own](trained, rest, x, y)


def _places(model: nn.Module, names: Sequence[str]) -> list[tuple[dict[str, Any], str, int]]:
    """Where a model keeps each of its tensors, those that it has under several names in each of them.

    What torch.func.functional_call does, found once instead of at every step.
    """
    numbers = {name: number for number, name in enumerate(names)}
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    by_id = {id(tensor): numbers[name] for name, tensor in tensors.items()}
    return [
        (store, key, by_id[id(tensor)])
        for module in model.modules()
        for store in (module._parameters, module._buffers)
        for key, tensor in store.items()
        if tensor is not None
    ]


def _batch(batches: Sequence[Batches], alive: Sequence[int], t: int) -> tuple[Tensor, Tensor, int | None]:
    """The batch that all models share, or their own ones stacked; each distinct one is made once."""
    made = dict[int, Batch]()
    for k in alive:
        if id(batches[k]) not in made:
            made[id(batches[k])] = batches[k][t]
    if len(made) == 1:
        return *next(iter(made.values())), None
    own = [made[id(batches[k])] for k in alive]
    return torch.stack([x for x, _ in own]), torch.stack([y for _, y in own]), 0
