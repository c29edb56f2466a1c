"""Time sweeps of 16 learning rates: `python benchmarks/sweep.py [part of a name]`, minutes on two idle cores.

All ratios are paired: the two sides alternate. "CPU" compares process CPU time, which other work on the machine
changes little; for workers it is the CPU time of the busiest one, which is the wall time on idle cores. "wall" is
what a clock says, other work included. Every process uses one thread. The plain loop is the one that a user
would write: torch.optim.SGD, and the loss recorded at every step.
"""

import functools
import os
import resource
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from normcore.lab import cnn, load_dataset, mlp, preresnet
from normcore.lab.experiment import Training
from normcore.lab.nets import two_layer
from normcore.lab.plans import cpu_count
from normcore.lab.sweep import grid, sweep

LRS = np.geomspace(0.01, 0.3, 16).tolist()
WORKERS = cpu_count()


@dataclass(frozen=True)
class Metered:
    """An experiment that also records its process, and the CPU seconds that this has taken since it began."""

    inner: Training

    @property
    def steps(self) -> int:
        """As the experiment's."""
        return self.inner.steps

    def shortened(self, steps: int) -> "Metered":
        """As the experiment's."""
        return Metered(self.inner.shortened(steps))

    def __call__(self, **cell: Any) -> dict[str, Any]:
        """One cell."""
        return {**self.inner(**cell), "cpu": time.process_time(), "pid": os.getpid()}

    def together(self, cells: Any) -> list[dict[str, Any]]:
        """Many cells."""
        results = self.inner.together(cells)
        return [{**result, "cpu": time.process_time(), "pid": os.getpid()} for result in results]


def half_square(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The loss of the catapult."""
    return (output - y).pow(2).sum(dim=1).mean() / 2


def plain_loop(training: Training, lrs: list[float]) -> None:
    """What a user would write."""
    for lr in lrs:
        net, batches, losses = training.make_net(seed=0), training._batches(0), []
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=lr)
        for t in range(training.steps):
            x, y = batches[t]
            optimizer.zero_grad()
            loss = training.loss_fn(net(x), y)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()


def measure(call: Any) -> tuple[float, float, str]:
    """Wall seconds, CPU seconds of this process and the busiest worker, and the backend."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if result is None:
        return wall, cpu, "plain"
    workers = [float(cell["cpu"]) for cell in result if int(cell["pid"]) != os.getpid()]
    return wall, cpu + max(workers, default=0.0), result.backend


def sweep_call(training: Training, backend: str, workers: int | None, cells: list[dict[str, Any]]) -> Any:
    """A sweep to be measured."""
    return lambda: sweep(Metered(training), cells, backend=backend, workers=workers)


def catapult(width: int, count: int, outputs: int, steps: int) -> Training:
    """A two-layer net on digits, full batch."""
    data = load_dataset("digits")
    x, y = data.x_train[:count], data.y_train[:count]
    target = (y[:, None] % 2 * 2 - 1).float() if outputs == 1 else torch.eye(10)[y]
    net = functools.partial(two_layer, 64, width, outputs)
    return Training(net, (x, target), steps, loss_fn=half_square)


def trainings() -> dict[str, Training]:
    """The nets of the comparison, with steps for one or two seconds each."""
    data = load_dataset("digits")
    shapes = ((256, 50, 1, 250), (256, 100, 10, 200), (512, 50, 1, 200), (512, 100, 10, 150), (1024, 50, 1, 150), (1024, 100, 10, 100))  # fmt: skip
    cases = {
        f"two-layer, width {width}, {count} digits, {outputs} out": catapult(width, count, outputs, steps)
        for width, count, outputs, steps in shapes
    }
    cases["MLP 64-32-10, batch 32"] = Training(functools.partial(mlp, (64, 32, 10)), data, 250, batch_size=32)
    cases["conv 8-16, batch 64"] = Training(functools.partial(cnn, (8, 16)), data, 80, batch_size=64)
    cases["PreResNet-8, batch 64"] = Training(functools.partial(preresnet, 8), data, 20, batch_size=64)
    return cases


def compare(name: str, training: Training, repeats: int) -> None:
    """Print how much faster each way is than the plain loop, and how far auto is from the best."""
    cells = grid(lr=LRS)
    ways = {
        "loop": ("loop", None),
        "vmap": ("vmap", None),
        f"{WORKERS} processes": ("processes", WORKERS),
        f"vmap in {WORKERS} processes": ("vmap", WORKERS),
        "auto": ("auto", WORKERS),
    }
    ratios, taken = defaultdict(list), defaultdict(int)
    behind = list[float]()
    for _ in range(repeats):
        plain = measure(lambda: plain_loop(training, LRS))
        times = {way: measure(sweep_call(training, *settings, cells)) for way, settings in ways.items()}
        for way, (wall, cpu, _) in times.items():
            ratios[way].append((plain[0] / wall, plain[1] / cpu))
        taken[times["auto"][2]] += 1
        behind.append(times["auto"][0] / min(seconds[0] for way, seconds in times.items() if way != "auto"))
    print(f"{name}: plain loop {plain[1]:.2f} s CPU, {plain[0]:.2f} s wall")
    for way, pairs in ratios.items():
        walls, cpus = zip(*pairs, strict=True)
        print(f"  {way:22s} {spread(walls)} times faster by wall, {spread(cpus)} by CPU")
    print(f"  auto took {dict(taken)}; its time over the best way's: {spread(behind)}", flush=True)


def spread(values: Any) -> str:
    """Median, and the range."""
    return f"{statistics.median(values):5.2f} ({min(values):.2f} to {max(values):.2f})"


def exponent(backend: str, training: Training) -> list[float]:
    """Slope of log CPU time over log cells, from 8 to 128."""
    slopes = []
    for _ in range(3):
        counts, seconds = [8, 16, 32, 64, 128], []
        for count in counts:
            cells = grid(lr=np.geomspace(0.01, 0.3, count).tolist())
            seconds.append(measure(sweep_call(training, backend, None, cells))[1])
        slopes.append(float(np.polyfit(np.log(counts), np.log(seconds), 1)[0]))
    return slopes


def memory(training: Training, steps: int) -> float:
    """By how many MiB the peak grows when a warm process trains `steps` steps."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sweep(
        Training(training.make_net, training.data, steps, loss_fn=training.loss_fn),
        grid(lr=LRS),
        backend="vmap",
    )
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main(part: str = "", repeats: int = 3) -> None:
    """Print everything, or the nets with `part` in their names."""
    torch.set_num_threads(1)
    small = catapult(256, 50, 1, 20)
    for text, backend, workers in (
        ("first vmap", "vmap", None),
        ("first workers", "vmap", WORKERS),
        ("workers again", "vmap", WORKERS),
    ):
        print(f"{text}: {measure(sweep_call(small, backend, workers, grid(lr=LRS)))[0]:.1f} s")
    for name, training in trainings().items():
        if part in name:
            compare(name, training, repeats)
    if part:
        return
    for backend in ("loop", "vmap"):
        print(f"{backend}: CPU time ~ cells^{spread(exponent(backend, catapult(256, 50, 1, 30)))}")
    growth = [memory(small, steps) for steps in (20, 200, 2000)]
    print(
        f"peak memory grows by {', '.join(f'{mib:.1f}' for mib in growth)} MiB in 20, 200 and 2000 steps of 16 cells"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
