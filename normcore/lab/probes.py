"""What can be read off a model in training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters that are trained."""
    return [p for p in model.parameters() if p.requires_grad]


def weight_vector(model: nn.Module) -> Tensor:
    """Concatenate all trained weights into one flat vector (a copy)."""
    return torch.cat([p.detach().flatten() for p in trainable(model)])


def weight_norm(model: nn.Module) -> float:
    """Measure the norm of the concatenated trained weights, the |theta| of the theory."""
    return float(weight_vector(model).double().norm())


def direction(model: nn.Module) -> Tensor:
    """Return theta/|theta|, the unit vector that a scale-invariant function depends on."""
    vector = weight_vector(model).double()
    return vector.div(vector.norm())


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Evaluate the model on x without gradients, in the mode it is in.

    In training mode BatchNorm uses the statistics of x; its running ones are left as they were.

    Example:
        >>> from normcore.lab import cnn
        >>> net = cnn()
        >>> x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> before = {name: value.clone() for name, value in net.state_dict().items()}
        >>> logits(net, x).shape
        torch.Size([4, 10])
        >>> all(torch.equal(before[name], value) for name, value in net.state_dict().items())
        True

    """
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    output: Tensor = model(x)
    for buffer, value in saved:
        buffer.copy_(value)
    return output


def logits_on(x: Tensor) -> Callable[[nn.Module], Tensor]:
    """Make a probe for `train`: the logits on fixed inputs."""
    return lambda model: logits(model, x)
