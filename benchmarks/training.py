"""What the laboratory's loop costs over a bare one: `python benchmarks/training.py`.

A bare torch loop of twelve lines with `SGD(fused=True)` against `lab.train` with ExpLR attached and the norm
of all weights logged at every step: ResNet-20 at 32x32, batch 128. The two alternate, a few steps each, in one
process; each ratio compares neighbours, and the spread over all pairs is printed. Process time (the processor
seconds this process used) is the figure to trust on a machine that does other things; wall time stands beside it.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

import normcore as nc
from normcore.lab import resnet, train, trainable, weight_norm

OPTIONS = dict(lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)


def bare_loop(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
    """The loop anybody would write."""
    model = resnet(20, width=16, in_channels=3)
    optimizer = torch.optim.SGD(trainable(model), **OPTIONS)

    def go() -> None:
        for x, y in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()

    return go


def with_exp_lr(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
    """`lab.train` with ExpLR and norms logged at each step."""
    model = resnet(20, width=16, in_channels=3)
    groups = [{"params": trainable(model), "scale_invariant": True}]
    optimizer = torch.optim.SGD(groups, **OPTIONS)
    exp_lr = nc.ExpLR(optimizer, model)

    def go() -> None:
        train(model, optimizer, batches, exp_lr=exp_lr, probes={"norm": weight_norm}, progress=False)

    return go


def paired_ratios(
    one: Callable[[], None], other: Callable[[], None], repeats: int
) -> tuple[list[float], list[float]]:
    """Time of the second over the first, alternating which goes first: process time and wall time."""
    process, wall = list[float](), list[float]()
    for repeat in range(repeats + 1):
        seconds = {}
        for run in (one, other) if repeat % 2 else (other, one):
            cpu, clock = time.process_time(), time.perf_counter()
            run()
            seconds[run] = (time.process_time() - cpu, time.perf_counter() - clock)
        if repeat:  # the first pair warms up
            process.append(seconds[other][0] / seconds[one][0])
            wall.append(seconds[other][1] / seconds[one][1])
    return process, wall


def spread(ratios: list[float]) -> str:
    """Median, quartiles and range."""
    low, _, high = statistics.quantiles(ratios, n=4)
    median = statistics.median(ratios)
    return f"median {median:.3f}, quartiles {low:.3f} to {high:.3f}, range {min(ratios):.3f} to {max(ratios):.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = [(torch.randn(128, 3, 32, 32), torch.randint(10, (128,))) for _ in range(arguments.steps)]
    process, wall = paired_ratios(bare_loop(data), with_exp_lr(data), arguments.repeats)
    print(f"ExpLR on and norms logged / bare loop, process time: {spread(process)}")
    print(f"                                       wall time:    {spread(wall)}")
