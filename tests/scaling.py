"""The times-ten test, in plain torch."""

import torch


def change(net, weights, factor, inputs):
    """Relative change of the output when these weights are multiplied."""
    x = inputs.to(weights[0].dtype)
    with torch.no_grad():
        before = net(x)
        for p in weights:
            p.mul_(factor)
        after = net(x)
        for p in weights:
            p.div_(factor)
    return float((after - before).norm() / before.norm())


def defect(net, inputs, factor=10.0):
    """Relative change of the output when all trained weights are multiplied."""
    return change(net, [p for p in net.parameters() if p.requires_grad], factor, inputs)


def with_values(net):
    """Give affine parameters values other than 1 and 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad and p.ndim == 1:
                p.copy_(torch.rand(p.shape, generator=generator, dtype=p.dtype) + 0.5)
    return net
