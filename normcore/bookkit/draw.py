"""Drawings: rays, two runs as polygons, blocks with degrees, a push along the weights, the plane of recipes.

Each fills one panel, the Axes that it is given or those of a new figure of 5.2 by 4.2 inches, and returns it.

python -m normcore.bookkit.draw FOLDER    writes the pictures of the front page as SVG, the same bytes each time
"""

import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Arc
from matplotlib.patheffects import withStroke

import normcore as nc
from normcore.bookkit import plots
from normcore.checks import FloatArray, checked_count, require_type

SPIRAL: dict[str, Any] = {"lr": 0.4, "weight_decay": 0.3, "steps": 16}
"""The pair of the front page."""
BOUNDARY = 0.4, 0.04, 0.48, 0.3
"""A rate and the next phase's, weight decay, momentum: at 94 percent of the critical product, to be seen."""
RECIPES = {
    "MobileNetV2": (0.9, 0.045, 4e-5),  # ImageNet; torchvision, references/classification/README.md
    "ResNet": (0.9, 0.1, 1e-4),  # ImageNet, batch 256; torchvision, references/classification/train.py
    "WRN": (0.9, 0.1, 5e-4),  # CIFAR-10; Zagoruyko & Komodakis, pytorch/main.py; Li & Arora 2020, Fig. 1
    "batch 8k": (0.9, 3.2, 1e-4),  # ResNet on ImageNet; Goyal et al. 2017, arXiv 1706.02677 (Nesterov)
    "nnU-Net": (0.99, 0.01, 3e-5),  # MIC-DKFZ/nnUNet, nnUNetTrainer.py (Nesterov)
}
"""Momentum, lr, weight decay of everyday recipes; with Nesterov the growth is the same to first order."""
BLOCKS = {
    "ResNet": ("conv", "norm", "ReLU", "conv", "norm", "+", "ReLU"),
    "PreResNet": ("norm", "ReLU", "conv", "norm", "ReLU", "conv", "+"),
}
INK, GREY = "#333333", "#666666"
RAY: dict[str, Any] = {"color": "#cccccc", "linewidth": 1.0, "zorder": 1}
HALO: dict[str, Any] = {"path_effects": [withStroke(linewidth=3, foreground="white")]}
ARROW: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 13, "shrinkA": 0, "shrinkB": 0}


def circle(angles: Any) -> FloatArray:
    """The points of the unit circle at these angles."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def gradient(theta: FloatArray, target: FloatArray) -> FloatArray:
    """Of the loss -cos(angle between theta and target), which sees the direction of theta alone."""
    unit = theta / np.linalg.norm(theta)
    return ((unit @ target) * unit - target) / np.linalg.norm(theta)


def descend(
    theta: FloatArray, targets: FloatArray, lrs: Any, weight_decay: float = 0.0, momentum: float = 0.0
) -> tuple[FloatArray, FloatArray]:
    """Torch's SGD, a target and a rate a step: weights and buffers before each step and after the last."""
    path, buffers = [theta], [np.zeros(2)]
    for target, lr in zip(targets, lrs, strict=True):
        buffers.append(momentum * buffers[-1] + gradient(path[-1], target) + weight_decay * path[-1])
        path.append(path[-1] - lr * buffers[-1])
    return np.array(path), np.array(buffers)


def spiral() -> tuple[FloatArray, FloatArray, FloatArray]:
    """The front page's pair: weights with weight decay, weights without, and the rates of the latter."""
    start, targets = circle(0.16), circle(1.46 + 0.3 * np.arange(SPIRAL["steps"]))
    growing = nc.exponential_lr(**SPIRAL).lr
    inner, _ = descend(start, targets, np.full_like(growing, SPIRAL["lr"]), SPIRAL["weight_decay"])
    outer, _ = descend(start, targets, growing)
    return inner, outer, growing


def _panel(ax: Axes | None, *, frame: bool = False) -> Axes:
    """The Axes, or new ones; without a frame they have equal units."""
    require_type("ax", ax, Axes | None, "matplotlib's Axes or None")
    ax = plt.subplots(figsize=(5.2, 4.2))[1] if ax is None else ax
    if not frame:
        ax.set_aspect("equal")
        ax.axis("off")
    return ax


def _say(ax: Axes, text: str, at: Any, offset: Any = (0, 0), color: str = INK, **options: Any) -> None:
    """Words beside a point; the offset is in points."""
    words: dict[str, Any] = {"fontsize": 12, "zorder": 6, **plots.BESIDE, **options}
    ax.annotate(text, tuple(at), xytext=offset, color=color, **words)


def _arrow(ax: Axes, tail: Any, head: Any, color: str = INK, width: float = 2.0) -> None:
    """An arrow from point to point, for which the panel makes room."""
    ax.annotate("", tuple(head), tuple(tail), arrowprops={**ARROW, "color": color, "linewidth": width})
    ax.plot(*np.array([tail, head]).T, linewidth=0)


def rays(ax: Axes | None = None) -> Axes:
    """Weights and twice the weights: half the gradient, and a quarter of the turn (of its tangent, exactly)."""
    ax, base = _panel(ax), 0.5
    along, target = circle(base), circle(base + np.pi / 2)
    ax.plot(*np.outer([0, 2.4], along).T, **RAY)
    words = (
        (r"$\theta$", r"$-\nabla L(\theta)$", r"$\varphi$"),
        (r"$2\theta$", "half as long", r"$\approx\varphi/4$"),
    )
    for size, (name, slope, turn) in zip((1, 2), words, strict=True):
        theta, radius = size * along, 0.7 * size
        moved = theta - 0.6 * gradient(theta, target)
        ends = np.degrees([base, np.arctan2(moved[1], moved[0])])
        ax.plot(*np.array([0 * moved, moved]).T, **RAY)
        ax.add_patch(Arc((0, 0), 2 * radius, 2 * radius, theta1=ends[0], theta2=ends[1], color=INK))
        ax.plot(*theta, "o", color=INK, markersize=6)
        _arrow(ax, theta, moved, plots.DECAY)
        _say(ax, name, theta, (8, -10), fontsize=14)
        _say(ax, slope, moved, (0, 12), plots.DECAY, ha="center")
        _say(ax, f"turn {turn}", radius * along, (8, -10))
    _say(ax, "0", (0, 0), (-8, -6), GREY)
    return ax


def two_runs(ax: Axes | None = None) -> Axes:
    """The same batches with weight decay and at the exponential rate: two polygons on the same rays."""
    ax, (inner, outer, lr) = _panel(ax), spiral()
    for far in outer:
        ax.plot(*np.array([0 * far, far]).T, **RAY)
    ax.plot(*inner.T, "o-", color=plots.DECAY, markersize=5)
    ax.plot(*outer.T, "o-", color=plots.EXPONENTIAL, markersize=5)
    _say(ax, "start", outer[0], (8, 9))
    _say(ax, "weight decay, rate stays", inner[-1], (9, 2), plots.DECAY)
    _say(ax, f"no weight decay,\nrate grows {lr[-1] / lr[0]:.0f}-fold", outer[3], (14, 8), plots.EXPONENTIAL)
    _say(ax, "on each ray:\nthe same function", (outer[-2] + outer[-4]) / 2, (14, -36), GREY)
    return ax


def degrees(layers: Sequence[str], *, affine: bool = False) -> list[int]:
    """The degree on each arrow of a block, where the stream has the degree that its branch returns."""

    def behind(degree: int, layer: str) -> int:
        return degree + 1 if layer == "conv" else int(affine) if layer == "norm" else degree

    *_, returned = accumulate(layers, behind, initial=0)
    return list(accumulate(layers, behind, initial=returned))


def block_degrees(ax: Axes | None = None, *, affine: bool = False) -> Axes:
    """A ResNet and a PreResNet block with the degree on every arrow, without or with gains and shifts."""
    ax = _panel(ax)
    ax.set(xlim=(0, 5.2), ylim=(0, 4.2))
    bold, box = {"weight": "bold"}, {"boxstyle": "round,pad=0.25", "edgecolor": GREY}
    for x, (name, layers) in zip((1.45, 4.05), BLOCKS.items(), strict=True):
        found, rows = degrees(layers, affine=affine), 3.9 - 0.47 * np.arange(len(layers) + 2)
        _say(ax, name, (x, 4.1), ha="center", **bold)
        for degree, above, below in zip(found, rows[:-1], rows[1:], strict=True):
            _arrow(ax, (x, above - 0.13), (x, below + 0.14), INK, 1.2)
            _say(ax, str(degree), (x + 0.12, (above + below) / 2), **bold)
        for layer, y in zip(layers, rows[1:-1], strict=True):
            fill = {"facecolor": "#dfe6ec" if layer == "norm" else "white"}
            _say(ax, layer, (x, y), ha="center", fontsize=11, bbox={**box, **fill})
        start, end, side = rows[0] - 0.17, rows[1 + layers.index("+")], x - 0.85
        ax.plot([x, side, side], [start, start, end], color=INK, linewidth=1.2)
        _arrow(ax, (side, end), (x - 0.17, end), INK, 1.2)
        _say(ax, str(found[0]), (side - 0.12, (start + end) / 2), ha="right", **bold)
    return ax


def boundary() -> tuple[FloatArray, FloatArray, list[float]]:
    """Weights and buffer of a run with weight decay at the end of a phase; kappa of that phase and of the next."""
    lr, lower, weight_decay, momentum = BOUNDARY
    path, buffers = descend(circle(2.7), circle(1.9 - 0.2 * np.arange(8)), [lr] * 8, weight_decay, momentum)
    alphas = [nc.growth_factor(rate, weight_decay, momentum) for rate in (lr, lower)]
    return path[-1], buffers[-1], [weight_decay / (alpha - momentum) for alpha in alphas]


def phase_boundary(ax: Axes | None = None) -> Axes:
    """Weights and buffer at a phase boundary, in units of x: less is taken out of the buffer along the weights."""
    ax, (theta, buffer, (before, after)) = _panel(ax), boundary()
    old, new = buffer - before * theta, buffer - after * theta
    ax.plot(*np.array([old - 0.1 * theta, buffer + 0.2 * theta]).T, **RAY)
    colors = INK, plots.DECAY, plots.EXPONENTIAL, plots.EXPONENTIAL
    for head, color in zip((theta, buffer, old, new), colors, strict=True):
        _arrow(ax, (0, 0), head, color)
    _arrow(ax, old, new, plots.OTHER, 3.0)
    _say(ax, r"weights $\theta$", theta, (0, 14), ha="right")
    _say(ax, "buffer $v$ with\nweight decay", buffer, (4, -14), plots.DECAY)
    _say(ax, r"before: $v-\kappa_{I-1}\theta$", old / 2, (-10, 0), plots.EXPONENTIAL, ha="right")
    _say(ax, r"after: $v-\kappa_I\theta$", 0.8 * new, (6, 0), plots.EXPONENTIAL)
    _say(ax, r"push $(\kappa_{I-1}-\kappa_I)\,\theta$", (old + new) / 2, (-8, 18), plots.OTHER, ha="center")
    return ax


def product_at(growth: float, momentum: Any, steps: int) -> Any:
    """The lr * weight_decay at which the rate grows by this factor in so many steps; momentum <= alpha^2."""
    alpha = growth ** (-0.5 / steps)
    return (1 - alpha) * (alpha - momentum) / alpha


def plane(ax: Axes | None = None, *, steps: int = 391) -> Axes:
    """Momentum and lr * weight_decay: recipes, critical line, growth of the rate in an epoch of so many steps."""
    checked_count("steps", steps)
    ax, free = _panel(ax, frame=True), np.geomspace(1, 1e-3, 200)
    critical = (1 - np.sqrt(1 - free)) ** 2
    ax.fill_between(free, critical, 1, color="#eeeeee", linewidth=0)
    plots.curve(ax, free, critical, "theory")
    _say(ax, "critical: (1 − √momentum)²", (0.3, 0.2))
    _say(ax, "beyond: no constant growth", (0.3, 0.2), (0, -18))
    for growth in (1.1, 1.48, 10):
        rest = np.geomspace(1, max(1 - growth ** (-1 / steps), 1e-3), 50)
        plots.curve(ax, rest, product_at(growth, 1 - rest, steps), "theory", linewidth=0.9)
        _say(ax, f"×{growth}", (1, product_at(growth, 0.0, steps)), (5, 6), **HALO)
    for name, (momentum, lr, weight_decay) in RECIPES.items():
        offset, side = ((7, 4), "left") if name == "WRN" else ((-7, -3), "right")
        ax.plot(1 - momentum, lr * weight_decay, "o", color=plots.DECAY, markersize=6)
        _say(ax, name, (1 - momentum, lr * weight_decay), offset, plots.DECAY, ha=side, **HALO)
    plots.axes_labels(ax, "momentum", "lr × weight decay", f"growth of the rate per epoch of {steps} steps")
    ax.set(xscale="log", yscale="log", xlim=(1, 1e-3), ylim=(1e-7, 1))
    ax.set_xticks([1, 0.5, 0.1, 0.01, 0.001], ["0", "0.5", "0.9", "0.99", "0.999"])
    ax.minorticks_off()
    ax.grid(visible=False)
    return ax


def _card(low: float, high: float, *curves: tuple[Any, str, str, int, tuple[float, float]]) -> Axes:
    """A small picture without numbers: values by step on a logarithmic axis, colour, label, where it stands."""
    ax = plt.subplots(figsize=(2.4, 1.6))[1]
    for values, color, label, at, offset in curves:
        plots.curve(ax, np.arange(len(values)), values, "other", label, at=at, offset=offset, color=color)
    ax.set(yscale="log", ylim=(low, high), xticks=[], yticks=[])
    ax.minorticks_off()
    return ax


def rates() -> Axes:
    """The card of Part I: the rate with weight decay and without, over 160 epochs."""
    growth = 0.1 * nc.growth_factor(0.1, 5e-4, 0.9) ** (-2 * 391 * np.arange(161))
    free = growth, plots.EXPONENTIAL, "no weight\ndecay", 60, (-36, 26)
    return _card(1e-8, 1e29, free, (0 * growth + 0.1, plots.DECAY, "weight decay", 60, (0, -8)))


def norms() -> Axes:
    """The card of Part II: weights a hundred times as long forget it, at lr 1 and weight decay 0.008."""
    short, long = (
        np.sqrt(list(accumulate(range(900), lambda r, _: 0.992**2 * r + 1 / r, initial=start**2)))
        for start in (2.0, 200.0)
    )
    far = long, plots.DECAY, "100 times longer", 20, (8, 3)
    ax = _card(1, 400, far, (short, plots.DECAY, "short weights", 20, (2, -10)))
    plots.curve(ax, [0, 900], [nc.equilibrium(1.0, 0.008, grad_sq_norm=1.0).norm] * 2, "theory")
    return ax


def losses() -> Axes:
    """The card of Part III: the loss at rates of 1.5, 3 and 5 over the curvature."""
    low, middle, high = nc.catapult.simulate(1.0, 1.0, np.array([1.5, 3.0, 5.0]), 2**20, steps=30).loss.T
    caught = middle, plots.OTHER, "between\n2 and 4", 12, (16, 10)
    lost = high, GREY, "above 4", 5, (16, 14)
    return _card(1e-6, 1e8, (low, GREY, "below 2", 5, (6, 2)), lost, caught)


def mark() -> Axes:
    """The two polygons alone, for a browser's tab."""
    ax = _panel(plt.subplots(figsize=(1, 1), facecolor="none")[1])
    for path, color in zip(spiral(), (plots.DECAY, plots.EXPONENTIAL), strict=False):
        ax.plot(*path.T, color=color, linewidth=5)
    return ax


def write(folder: Path) -> None:
    """Write the pictures of the front page into a folder."""
    plots.use_style()
    with mpl.rc_context({"svg.hashsalt": "normcore"}):
        for picture in (two_runs, rates, norms, losses, mark):
            picture()
            figure = plt.gcf()
            about: dict[str, Any] = {"metadata": {"Date": None, "Creator": None}}
            figure.savefig(folder / f"{picture.__name__}.svg", facecolor=figure.get_facecolor(), **about)
            plt.close(figure)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
