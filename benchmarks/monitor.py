"""Time what NormMonitor costs a training step: `python benchmarks/monitor.py`.

PreResNet-20 on 32x32 images, batch 128. Two measures: whole steps with and without it, alternating in one
process so that a busy machine moves both sides; and the two hooks alone against a step, which resolves a cost far
below the spread of the first. `log()` is timed apart: it is called when a log is written, not at each step.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from normcore.lab import preresnet, trainable
from normcore.norm_dynamics.monitor import NormMonitor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Seconds a call, the device's work included."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def setting(name: str) -> tuple[Callable[[], object], torch.optim.Optimizer]:
    """A training step and its optimizer."""
    torch.manual_seed(0)
    net = preresnet(20, width=16, in_channels=3).to(DEVICE)
    if name == "sgd":
        optimizer = torch.optim.SGD(trainable(net), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    else:
        optimizer = torch.optim.AdamW(trainable(net), lr=1e-3, weight_decay=0.05, fused=True)
    x, y = torch.randn(128, 3, 32, 32, device=DEVICE), torch.randint(10, (128,), device=DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()

    return step, optimizer


def report(name: str, values: list[float], digits: int = 4) -> None:
    """Print median and spread."""
    low, high = min(values), max(values)
    print(f"{name}: median {statistics.median(values):.{digits}f}, {low:.{digits}f} to {high:.{digits}f}")


def measure(name: str, repeats: int) -> None:
    """Print the ratios of one optimizer."""
    (bare, _), (watched, optimizer) = setting(name), setting(name)
    monitor = NormMonitor(optimizer)
    for step in (bare, watched):
        step()

    def hooks() -> None:
        monitor._hooks._before(optimizer, (), {})
        monitor._hooks._after(optimizer, (), {})

    pairs, alone, logs = [], [], []
    for turn in range(repeats):
        order = (bare, watched) if turn % 2 else (watched, bare)
        took = {step: seconds(step) for step in order}
        pairs.append(took[watched] / took[bare])
        alone.append(seconds(hooks, 20) / took[bare])
        logs.append(seconds(monitor.log) / took[bare])
    report(f"{name}, every=1, step with / without", pairs, 3)
    report(f"{name}, every=1, the two hooks / a step without", alone)
    report(f"{name}, one log() / a step without", logs)
    print(f"{name}, the two hooks: {1e3 * seconds(hooks, 300):.2f} ms")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU, one thread")
    for optimizer_name in ("sgd", "adamw"):
        measure(optimizer_name, repeats=15)
