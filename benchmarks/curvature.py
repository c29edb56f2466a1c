"""Time the curvature tools side by side: `python benchmarks/curvature.py`.

Ratios are taken in one process, alternating, by process time, so that a busy machine moves both sides alike; each is
printed with its spread. The torch recipe is vmap(jacrev) and eigvalsh. Power iteration runs to the accuracy
that Lanczos reached.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.nn.functional import cross_entropy

from normcore.curvature.hessian_operator import HessianOperator
from normcore.curvature.ntk import NTKOperator, ntk_top_eigenvalue


def mlp(width: int = 512) -> nn.Module:
    """784-512-512-10 with ReLU."""
    layers = nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    return nn.Sequential(*layers)


class Block(nn.Module):
    """Two 3x3 convolutions with norms and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        """Build the layers."""
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), norm(outputs))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Sum and ReLU."""
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet8(norm: Callable[[int], nn.Module], width: int = 16) -> nn.Module:
    """ResNet-8 for 32x32 images; 78 thousand parameters at width 16."""
    stem = nn.Conv2d(3, width, 3, 1, 1, bias=False), norm(width), nn.ReLU()
    blocks = (
        Block(width, width, 1, norm),
        Block(width, 2 * width, 2, norm),
        Block(2 * width, 4 * width, 2, norm),
    )
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def seconds(task: Callable[[], object]) -> float:
    """Process time of one call."""
    start = time.process_time()
    task()
    return time.process_time() - start


def ratios(slow: Callable[[], object], fast: Callable[[], object], repeats: int) -> list[tuple[float, float]]:
    """Times of both, taken in turn."""
    fast()
    return [(seconds(slow), seconds(fast)) for _ in range(repeats)]


def show(name: str, pairs: list[tuple[float, float]]) -> None:
    """Print the median ratio with its range, and both times."""
    r = [a / b for a, b in pairs]
    slow, fast = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"{name:58} x{statistics.median(r):6.2f} ({min(r):.2f} to {max(r):.2f})   {slow:7.3f} s, {fast:.3f} s",
        flush=True,
    )


def recipe(model: nn.Module, x: Tensor) -> float:
    """The NTK by vmap(jacrev), and all its eigenvalues."""
    values = {n: p.detach() for n, p in model.named_parameters()}
    rows = vmap(jacrev(lambda v, a: functional_call(model, v, (a[None],))[0]), (None, 0))(values, x)
    flat = torch.cat([r.reshape(len(x) * 10, -1) for r in rows.values()], dim=1)
    return float(torch.linalg.eigvalsh(flat @ flat.T / len(x))[-1])


def power(model: nn.Module, x: Tensor, value: float, accuracy: float) -> int:
    """Power iteration by vjp and jvp until within the accuracy of the value; the number of products."""
    operator = NTKOperator(model, x, "lanczos")
    vector = torch.randn(operator.size, generator=torch.Generator().manual_seed(0))
    for k in range(1, 300):
        moved = operator @ (vector / vector.norm())
        if abs(float(moved @ vector / vector.norm()) / value - 1) < accuracy:
            return k
        vector = moved
    return 300


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> object:
    """One gradient."""
    return torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))


def ntk_section(name: str, model: nn.Module, x: Tensor, repeats: int) -> None:
    """The NTK of one model against the recipe, power iteration and Lanczos."""
    result = ntk_top_eigenvalue(model, x)
    exact = recipe(model, x)
    print(f"{name}: {result.method}, {result.matvecs} products, off by {abs(result.value / exact - 1):.1e}")
    fast = lambda: ntk_top_eigenvalue(model, x)  # noqa: E731
    show("  vmap(jacrev) + eigvalsh / this", ratios(lambda: recipe(model, x), fast, repeats))
    show("  power iteration to 1e-4 / this", ratios(lambda: power(model, x, exact, 1e-4), fast, repeats))
    show(
        "  Lanczos on the model / this",
        ratios(lambda: ntk_top_eigenvalue(model, x, "lanczos"), fast, repeats),
    )


def growth(sizes: list[int], task: Callable[[int], Callable[[], object]]) -> float:
    """The exponent of the time in the size."""
    times = []
    for size in sizes:
        run = task(size)
        run()
        times.append(min(seconds(run) for _ in range(3)))
    logs = torch.tensor([sizes, times], dtype=torch.float64).log()
    logs = logs - logs.mean(1, keepdim=True)
    return float((logs[0] * logs[1]).sum() / (logs[0] ** 2).sum())


def hessian_section(norm: Callable[[int], nn.Module], width: int, methods: list[str], repeats: int) -> None:
    """Hessian products in gradients, in train mode."""
    model, x, y = resnet8(norm, width), torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    print(f"ResNet-8 of width {width} with {norm.__name__}, 32 images, train mode")
    for method in methods:
        operator = HessianOperator(model, cross_entropy, (x, y), method)
        vector = torch.randn(operator.size)
        operator @ vector  # the first product of a difference searches its step
        pairs = ratios(lambda op=operator, v=vector: op @ v, lambda: gradient(model, x, y), repeats)
        show(f"  Hessian product, {method} / gradient", pairs)


def main() -> None:
    """Print all figures."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ntk_section("MLP 784-512-512-10, 128 inputs", mlp(), torch.randn(128, 784), 3)
    ntk_section(
        "ResNet-8 (GroupNorm), 64 images",
        resnet8(lambda c: nn.GroupNorm(4, c)),
        torch.randn(64, 3, 32, 32),
        3,
    )
    hessian_section(nn.BatchNorm2d, 16, ["double_backward", "jvp_grad", "finite_difference"], 9)
    hessian_section(nn.Identity, 16, ["double_backward"], 9)  # what convolutions alone cost
    hessian_section(nn.BatchNorm2d, 64, ["double_backward"], 9)
    inputs = torch.randn(1024, 784)
    net = mlp()
    products = lambda op, v: lambda: [op @ v for _ in range(5)]  # noqa: E731
    by_inputs = growth(
        [128, 256, 512, 1024],
        lambda m: products(NTKOperator(net, inputs[:m], "lanczos"), torch.randn(10 * m)),
    )
    widths = [256, 512, 1024]
    sizes = [sum(p.numel() for p in mlp(w).parameters()) for w in widths]
    nets = {size: mlp(w) for size, w in zip(sizes, widths, strict=True)}
    by_size = growth(
        sizes, lambda s: products(NTKOperator(nets[s], inputs[:256], "lanczos"), torch.randn(2560))
    )
    print(f"time of a product: exponent {by_inputs:.2f} in inputs, {by_size:.2f} in parameters")


if __name__ == "__main__":
    main()
