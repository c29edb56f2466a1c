"""Time the figures that the README names: `python benchmarks/core.py`.

Ratios are taken in one process, alternating, so that a busy machine moves both sides; the spread is printed.
"""

import copy
import statistics
import time

import torch
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

import normcore as nc
from normcore.lab import preresnet, trainable


def schedule_seconds() -> float:
    """Seconds for a million steps of the recursion."""
    start = time.perf_counter()
    nc.equivalent_schedule(0.1, 5e-4, 0.9, steps=1_000_000)
    return time.perf_counter() - start


def step_ratios(repeats: int = 60, steps: int = 2) -> list[float]:
    """Time of a training step with ExpLR over one without, PreResNet-20 on 32x32 images, batch 32, fused SGD.

    Gradient hooks, converted gradients and co-scaled layers are all in it; the trial of the first pass is not. Few
    steps and many repetitions, the order turned each time, since other work comes and goes.
    """
    nets = [preresnet(20, width=16, in_channels=3)]
    nets.append(copy.deepcopy(nets[0]))
    options = dict(lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    optimizers = [
        torch.optim.SGD([{"params": trainable(net), "scale_invariant": True}], **options) for net in nets
    ]
    nc.ExpLR(optimizers[1], nets[1])
    x, y = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    ratios = []
    for repeat in range(repeats + 1):
        seconds = [0.0, 0.0]
        for i in (0, 1) if repeat % 2 else (1, 0):
            start = time.process_time()
            for _ in range(steps):
                optimizers[i].zero_grad()
                cross_entropy(nets[i](x), y).backward()
                optimizers[i].step()
            seconds[i] = time.process_time() - start
        ratios.append(seconds[1] / seconds[0])
    return ratios[1:]


def invariance_ratios(repeats: int = 2) -> list[float]:
    """Processor time of six forward passes a tensor over that of `scale_invariance`, resnet18 at 32x32, batch 12.

    Six is what verdicts and a search for groups took one tensor at a time: doubled and moved at random, at two points,
    and two for a difference.
    """
    model = resnet18(num_classes=10)
    x, y = torch.randn(12, 3, 32, 32), torch.randint(10, (12,))
    ratios = []
    for _ in range(repeats):
        start = time.process_time()
        nc.scale_invariance(model, cross_entropy, (x, y))
        middle = time.process_time()
        with torch.no_grad():
            for p in model.parameters():
                for factor in (2.0, 1.5, 0.5, 0.75, 1.003, 0.997):
                    p.mul_(factor)
                    model(x)
                    p.div_(factor)
        ratios.append((time.process_time() - middle) / (middle - start))
    return ratios


if __name__ == "__main__":
    torch.set_num_threads(1)
    times = [schedule_seconds() for _ in range(3)]
    print(f"equivalent_schedule, a million steps: {min(times):.2f} to {max(times):.2f} s")
    ratios = step_ratios()
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"training step with ExpLR / without: median {middle:.3f}, quartiles {low:.3f} and {high:.3f}")
    ratios = invariance_ratios()
    print(f"six forward passes a tensor / scale_invariance: {min(ratios):.1f} to {max(ratios):.1f}")
