"""Small convolutional nets of several seeds, trained as one net."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from normcore.checks import checked_pair, require_examples, require_type
from normcore.lab.stacks.descend import softmax_loss
from normcore.lab.training.loop import Batches, run
from normcore.lab.training.probes import History, trainable


def run_side_by_side(
    nets: Sequence[nn.Sequential], batches: Sequence[Batches], **options: Any
) -> list[History]:
    """Train copies of small convolutional nets as one net: a `run` of each up to rounding, in half the time.

    Convolutions become grouped ones, BatchNorm looks at more channels, and the head becomes a batch of heads, so that
    each net sees its own inputs and no other net. A loss that is not finite ends all of them.

    Args:
        nets: R nets that differ in their weights alone: convolutions of images, BatchNorm, parts without parameters,
            and a last `Linear` without bias.
        batches: for each net a sequence of (x, y) with labels y, all of one length and one shape.
        **options: of `run`, the same for all: lr, weight_decay, momentum, schedule, every, ...

    Returns:
        For each net its losses and "direction", as `run` records them.

    Raises:
        ValueError: the nets are of different makes or have other parts, or the batches do not fit.

    Example:
        >>> from normcore.lab import cnn, load_dataset
        >>> orders = [load_dataset("digits").batches(10, 32, seed) for seed in range(2)]
        >>> first, second = run_side_by_side([cnn(seed=0), cnn(seed=1)], orders, lr=0.1)
        >>> first["direction"].shape == run(cnn(seed=0), orders[0], lr=0.1)["direction"].shape
        True

    """
    wide, joined = _one_net(nets), _joined(batches, len(nets))
    losses = list[Tensor]()

    def loss_of_all(outputs: Tensor, y: Tensor) -> Tensor:
        each = softmax_loss(outputs, y)
        losses.append(each.detach())
        return each.sum()

    def directions(wide: nn.Module) -> Tensor:
        rows = [p.detach().reshape(len(nets), -1) for p in trainable(wide)]
        return normalize(torch.cat(rows, dim=1).double(), dim=1)

    whole = run(wide, joined, loss_fn=loss_of_all, probes={"direction": directions}, **options)
    alive = len(joined) if whole.diverged_at is None else whole.diverged_at
    table = np.full((len(joined), len(nets)), np.nan)
    table[:alive] = torch.stack(losses)[:alive].cpu()
    return [
        History(loss, whole.step, {"direction": unit}, whole.diverged_at)
        for loss, unit in zip(table.T, whole["direction"].swapaxes(0, 1), strict=True)
    ]


def _joined(batches: Sequence[Batches], runs: int) -> list[tuple[Tensor, Tensor]]:
    """The batches of all nets as one for each step: inputs (B, R C, H, W), labels (R, B)."""
    require_type("batches", batches, Sequence, "a list, for each net its batches")
    for own in batches:
        require_type("batches", own, Sequence, "a list, for each net its batches")
    if len(batches) != runs or len({len(own) for own in batches}) > 1:
        got = [len(own) for own in batches]
        raise ValueError(f"batches must hold as many for each of the {runs} nets, got {got}")
    joined = []
    for of_step in zip(*batches, strict=True):
        xs, ys = zip(*(checked_pair(batch, "each of batches") for batch in of_step), strict=True)
        for x, y in of_step:
            require_examples(x, y, " of batches")
        shapes = {((*x.shape,), (*y.shape,)) for x, y in of_step}
        if len(shapes) > 1 or xs[0].ndim != 4 or ys[0].ndim != 1:
            need = "images (B, C, H, W) of one shape and labels (B,)"
            raise ValueError(f"batches must hold {need}, got {shapes}")
        joined.append((torch.cat(xs, dim=1), torch.stack(ys)))
    return joined


def _one_net(nets: Sequence[nn.Sequential]) -> nn.Sequential:
    """One net, channels R C, that computes what each of these does with its own C channels."""
    require_type("nets", nets, Sequence, "a list of torch.nn.Sequential")
    for net in nets:
        require_type("nets", net, nn.Sequential, "a list of torch.nn.Sequential")
    if not nets:
        raise ValueError("nets must be at least one, got none")
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in nets]
    head, alike = nets[0][-1], all(shape == shapes[0] for shape in shapes)
    if not (alike and isinstance(head, nn.Linear) and head.bias is None):
        raise ValueError("nets must be of one make, with a Linear layer without bias at the end, got others")
    *layers, _ = wide = copy.deepcopy(nets[0])
    wide[-1] = _Heads([net[-1] for net in nets])
    for name, layer in nn.Sequential(*layers).named_modules():
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        if own and not isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            raise ValueError(f"nets must have convolutions and BatchNorm alone, got a {type(layer).__name__}")
        for kind, tensor in own:
            if tensor.ndim:  # all but a count of batches
                parts = [getattr(net.get_submodule(name), kind).detach() for net in nets]
                tensor.data = torch.cat(parts)
        if isinstance(layer, nn.Conv2d):
            layer.groups *= len(nets)
    return wide


class _Heads(nn.Module):
    """Last layers side by side: features (B, R F) to outputs (R, B, K)."""

    def __init__(self, heads: Sequence[nn.Linear]) -> None:
        super().__init__()
        weights = torch.stack([head.weight.detach() for head in heads])
        self.weight = nn.Parameter(weights, requires_grad=heads[0].weight.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.unflatten(1, (len(self.weight), -1)).transpose(0, 1), self.weight.transpose(1, 2))
