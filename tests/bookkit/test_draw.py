"""The drawings are right by their numbers, and legible: no words on words, none on a curve."""

import re
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import FancyBboxPatch

import normcore as nc
from normcore import lab
from normcore.bookkit import draw, plots

ROOT = Path(__file__).parents[2]
PANELS = (draw.rays, draw.two_runs, draw.block_degrees, draw.phase_boundary, draw.plane)
FRONT = (draw.two_runs, draw.rates, draw.norms, draw.losses, draw.mark)
EPS = np.finfo(float).eps


@pytest.fixture(autouse=True)
def headless():
    mpl.use("Agg")
    plots.use_style()
    yield
    plt.close("all")


def cross(a, b):
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def arrows(ax):
    """Tail and head of every arrow, in the order of drawing."""
    return [np.stack(line.get_data(), axis=1) for line in ax.lines if line.get_linewidth() == 0]


def curves(ax, color):
    """The data of the lines in a colour."""
    visible = [line for line in ax.lines if line.get_linewidth() > 0]
    return [
        np.stack(line.get_data(), axis=1) for line in visible if to_hex(line.get_color()) == color.lower()
    ]


def autograd(theta, target):
    """Of minus the cosine, by torch."""
    theta = torch.tensor(theta, requires_grad=True)
    loss = -torch.nn.functional.cosine_similarity(theta, torch.tensor(target), dim=0, eps=0.0)
    return torch.autograd.grad(loss, theta)[0].numpy()


def test_the_loss_is_scale_invariant_and_its_gradient_is_torchs():
    for angle, size in ((0.3, 1.0), (2.0, 0.1), (4.0, 30.0)):
        theta, target = size * draw.circle(angle), draw.circle(1.1)
        slope = draw.gradient(theta, target)
        assert np.allclose(slope, autograd(theta, target), rtol=1e-12, atol=1e-15 / size)
        assert abs(slope @ theta) < 4 * EPS
        assert np.allclose(draw.gradient(2 * theta, target), slope / 2, rtol=1e-12)


def by_torch(start, targets, lrs, corrections=None, **options):
    """Weights before each step and after the last, and the last buffer, with torch's own optimizer."""
    theta = torch.nn.Parameter(torch.tensor(start))
    optimizer, path = torch.optim.SGD([theta], lr=1.0, **options), [start]
    for step, (target, lr) in enumerate(zip(targets, lrs, strict=True)):
        push = (corrections or {}).get(step, 0.0) * theta.detach()
        if corrections:
            buffer = optimizer.state[theta].get("momentum_buffer", torch.zeros(2))
            optimizer.state[theta]["momentum_buffer"] = buffer + push
        theta.grad = torch.tensor(autograd(theta.detach().numpy(), target))
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        path.append(theta.detach().numpy().copy())
    return np.array(path), optimizer.state[theta]["momentum_buffer"]


def test_the_runs_are_those_of_torchs_optimizer():
    targets, lrs = draw.circle(np.linspace(1, 3, 9)), [0.3] * 5 + [0.05] * 4
    path, buffers = draw.descend(draw.circle(0.2), targets, lrs, 0.2, 0.7)
    expected, buffer = by_torch(draw.circle(0.2), targets, lrs, weight_decay=0.2, momentum=0.7)
    assert np.allclose(path, expected, rtol=1e-12) and np.allclose(buffers[-1], buffer, rtol=1e-12)


def test_the_gradient_is_half_as_long_and_the_turn_a_quarter():
    ax = draw.rays()
    (theta, moved), (twice, far) = arrows(ax)
    short, long = far - twice, moved - theta
    assert np.allclose(twice, 2 * theta) and np.allclose(short, long / 2)
    assert abs(long @ theta) < 4 * EPS and abs(short @ twice) < 4 * EPS
    tangents = [np.linalg.norm(step) / np.linalg.norm(tail) for step, tail in ((long, theta), (short, twice))]
    assert tangents[0] / tangents[1] == pytest.approx(4, rel=1e-12)
    turns = [arc.theta2 - arc.theta1 for arc in ax.patches]
    assert np.allclose(np.tan(np.radians(turns)), tangents)
    assert 3.5 < turns[0] / turns[1] < 4  # of the angle itself, about a quarter


def test_two_polygons_lie_on_the_same_rays():
    lr, weight_decay, steps = draw.SPIRAL.values()
    (inner,), (outer,) = (curves(ax := draw.two_runs(), c) for c in (plots.DECAY, plots.EXPONENTIAL))
    sizes = np.linalg.norm(inner, axis=1) * np.linalg.norm(outer, axis=1)
    assert len(inner) == steps + 1 and np.abs(cross(inner, outer) / sizes).max() < 30 * EPS
    assert np.allclose(inner, outer * (1 - lr * weight_decay) ** np.arange(steps + 1)[:, None], rtol=1e-12)
    assert np.linalg.norm(inner[-1]) < 0.5 and np.linalg.norm(outer[-1]) > 2  # one in, one out, from 1
    drawn = curves(ax, draw.RAY["color"])
    assert len(drawn) == steps + 1
    assert all(abs(cross(ray[1], point)) < 1e-12 for ray, point in zip(drawn, inner, strict=True))


def test_at_a_wrong_exponent_the_polygons_part():
    """The control: exponent -2t for -2t-1."""
    lr, weight_decay, steps = draw.SPIRAL.values()
    inner, outer, growing = draw.spiral()
    targets = draw.circle(1.46 + 0.3 * np.arange(steps))
    right, wrong = (draw.descend(outer[0], targets, growing * f)[0] for f in (1, 1 - lr * weight_decay))
    assert np.array_equal(right, outer)
    sizes = np.linalg.norm(inner, axis=1) * np.linalg.norm(wrong, axis=1)
    assert np.abs(cross(inner, wrong) / sizes).max() > 0.01


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("name", "block"), [("ResNet", "3"), ("PreResNet", "2")])
def test_degrees_are_those_that_a_net_shows(name, block, affine):
    """A block with the identity beside it, measured by doubling the weights."""
    make, depth = (lab.resnet, 8) if name == "ResNet" else (lab.preresnet, 14)
    net = make(depth, width=4, affine=affine, dtype=torch.float64)
    for i, p in enumerate(p for p in net.parameters() if p.dim() == 1):
        torch.nn.init.uniform_(p, 0.5, 1.5, generator=torch.Generator().manual_seed(i))
    images = torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    measured = nc.norm_input_degrees(net, [lab.trainable(net)], (images,))
    layers = draw.BLOCKS[name]
    found = draw.degrees(layers, affine=affine)
    seen = [degree for degree, layer in zip(found, layers, strict=False) if layer == "norm"]
    assert seen == [measured[f"{block}.norm{i}"][0] for i in (1, 2)]
    behind = measured[f"{int(block) + 1}.norm1"][0] - (name == "ResNet")  # there a convolution stands between
    assert found[0] == found[-1] == behind == (name == "PreResNet") + affine
    shown = [int(t.get_text()) for t in draw.block_degrees(affine=affine).texts if t.get_text().isdigit()]
    lists = [draw.degrees(layers, affine=affine) for layers in draw.BLOCKS.values()]
    assert shown == [
        degree for along in lists for degree in (*along, along[0])
    ]  # the last beside the shortcut


def test_the_push_is_the_correction_of_texp():
    """A TEXP run by torch's optimizer, its weights and buffer brought to the units of the run with weight decay."""
    lr, lower, weight_decay, momentum = draw.BOUNDARY
    plan = nc.texp([(lr, 8), (lower, 1)], weight_decay, momentum)
    targets = draw.circle(1.9 - 0.2 * np.arange(8))
    path, buffer = by_torch(draw.circle(2.7), targets, plan.lr[:8], plan.corrections, momentum=momentum)
    scale = np.exp(plan.log_scale[8])
    pushed = (buffer.numpy() + plan.corrections[8] * path[-1]) / scale
    (_, theta), (_, v), (_, old), (_, new), push = arrows(draw.phase_boundary())
    assert np.allclose(path[-1] * scale, theta, rtol=1e-10)
    assert np.allclose(buffer / scale, old, rtol=1e-10) and np.allclose(pushed, new, rtol=1e-10, atol=1e-12)
    assert np.array_equal(push, [old, new])
    for step in (new - old, v - old):
        assert abs(cross(step, theta)) < 1e-12 and step @ theta > 0
    assert 0.9 < lr * weight_decay / (1 - momentum**0.5) ** 2 < 1
    with_decay, buffer = by_torch(
        draw.circle(2.7), targets, [lr] * 8, weight_decay=weight_decay, momentum=momentum
    )
    assert np.allclose(with_decay[-1], theta, rtol=1e-12) and np.allclose(buffer, v, rtol=1e-12)


@pytest.mark.parametrize("steps", [391, 5_005])
def test_critical_line_and_contours_are_the_packages(steps):
    critical, *contours = curves(draw.plane(steps=steps), "#000000")
    for free, product in critical[1::20]:
        nc.growth_factor(1.0, product * (1 - 1e-12), 1 - free)
        with pytest.raises(ValueError, match="complex"):
            nc.growth_factor(1.0, product * (1 + 1e-9) + 1e-15, 1 - free)
    for growth, line in zip((1.1, 1.48, 10), contours, strict=True):
        found = [nc.growth_factor(1.0, product, 1 - free) ** (-2 * steps) for free, product in line[:-1]]
        assert np.allclose(found, growth, rtol=1e-9)


def test_recipes_stand_where_their_numbers_are_and_below_critical():
    ax = draw.plane()
    dots = np.concatenate(curves(ax, plots.DECAY))
    for (name, (momentum, lr, weight_decay)), dot in zip(draw.RECIPES.items(), dots, strict=True):
        assert np.allclose(dot, [1 - momentum, lr * weight_decay]), name
        assert nc.growth_factor(lr, weight_decay, momentum) < 1
        assert name in [text.get_text() for text in ax.texts]
    momentum, lr, weight_decay = draw.RECIPES["WRN"]
    assert nc.growth_factor(lr, weight_decay, momentum) ** (-2 * 391) == pytest.approx(1.48, abs=0.005)


@pytest.mark.parametrize("panel", PANELS)
def test_a_drawing_fills_the_axes_it_is_given_and_returns_them(panel):
    _, (left, right) = plt.subplots(1, 2)
    assert panel(left) is left and left.texts and not right.has_data()
    assert panel().get_figure().get_size_inches().tolist() == [5.2, 4.2]


@pytest.mark.parametrize("panel", {*PANELS, *FRONT}, ids=lambda panel: panel.__name__)
def test_theory_is_black_and_dashed_and_nothing_else_is(panel):
    for line in panel().lines:
        black = to_hex(line.get_color()) == "#000000"
        assert (line.get_linestyle() == "--") == (black and line.get_linewidth() > 0)


def boxes(ax):
    """The boxes of all words of a panel, in pixels."""
    ax.figure.canvas.draw()
    ticks = []
    for axis in (ax.xaxis, ax.yaxis) if ax.axison else ():
        low, high = sorted(axis.get_view_interval())
        ticks += [axis.label, *(t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high)]
    titles = [child for child in ax.get_children() if isinstance(child, mpl.text.Text)]
    for text in dict.fromkeys([*ax.texts, *ticks, *titles]):
        if not text.get_text().strip():
            continue
        patch = text.get_bbox_patch()
        yield text.get_text(), (patch if isinstance(patch, FancyBboxPatch) else text).get_window_extent()


def pixels(ax):
    """Points along everything that is drawn strongly, a pixel apart."""
    for line in ax.lines:
        width = line.get_linewidth()
        if to_hex(line.get_color()) in (draw.RAY["color"], "#000000") or line.get_linestyle() == "None":
            continue  # faint, or under the words' white seam
        if width == 0 and "+" in [text.get_text() for text in ax.texts]:
            continue  # arrows between boxes
        ends = ax.transData.transform(np.stack(line.get_data(), axis=1))
        for a, b in pairwise(ends[np.isfinite(ends).all(axis=1)]):
            yield from np.linspace(a, b, 2 + int(np.hypot(*(b - a))))


@pytest.mark.parametrize("panel", {*PANELS, *FRONT}, ids=lambda panel: panel.__name__)
def test_words_lie_neither_on_words_nor_on_curves_nor_outside(panel):
    ax = panel()
    placed = list(boxes(ax))
    for (a, one), (b, other) in combinations(placed, 2):
        assert not one.overlaps(other), (a, b)
    width, height = ax.figure.canvas.get_width_height()
    points = np.array([*pixels(ax)] or np.zeros((0, 2)))
    for name, box in placed:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, name
        inside = (points > [box.x0, box.y0]) & (points < [box.x1, box.y1])
        assert not inside.all(axis=1).any(), name


def test_overlaps_are_seen():
    """The control of the test above."""
    ax = draw.two_runs()
    draw._say(ax, "weight", draw.spiral()[0][-1], (20, 0))
    placed = dict(boxes(ax))
    assert placed["weight"].overlaps(placed["weight decay, rate stays"])


def plain(svg):
    """An SVG without its ids, and its numbers."""
    svg = re.sub(r'(id="|url\(#|href="#)[^")]*', r"\1", svg)
    return re.sub(r"-?\d+\.?\d*", "0", svg), np.array(re.findall(r"-?\d+\.?\d*", svg), dtype=float)


@pytest.mark.skipif(mpl.__version_info__ < (3, 10), reason="older matplotlib writes other markup")
def test_the_stored_pictures_are_what_the_command_makes(tmp_path):
    draw.write(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {picture.__name__ for picture in FRONT}
    for made in tmp_path.iterdir():
        stored = (ROOT / "book" / "_static" / made.name).read_text()
        (text, numbers), (kept, values) = plain(made.read_text()), plain(stored)
        assert text == kept and np.allclose(numbers, values, atol=0.1), f"make {made.name} anew"
        assert "<dc:date>" not in stored


def test_the_front_page_says_which_run_it_shows():
    lr, weight_decay, steps = draw.SPIRAL.values()
    growing = draw.spiral()[2]
    run = f"{steps} steps at learning rate {lr} with weight decay {weight_decay}"
    growth = f"multiplied by {growing[1] / growing[0]:.3g} in every step, {growing[-1] / growing[0]:.0f}-fold in all"
    for page in (ROOT / "book" / "index.md", ROOT / "README.md"):
        text = page.read_text()
        assert "_static/two_runs.svg" in text and run in text and growth in text, page.name


def test_the_numbers_of_the_cards_are_the_packages():
    text = (ROOT / "book" / "index.md").read_text()
    numbers = re.findall(r'class="front-number">(.*?)<', text)
    epoch = nc.growth_factor(0.1, 5e-4, 0.9) ** (-2 * 391)
    angle = np.degrees(nc.equilibrium(0.1, 5e-4, 0.9).angle)
    phases = nc.lr_phases(1.0)
    assert numbers == [f"×{epoch:.2f}", f"{angle:.2f}°", f"{phases.critical_lr:g} to {phases.max_lr:g}"]
    assert all(f"_static/{picture.__name__}.svg" in text for picture in (draw.rates, draw.norms, draw.losses))


def test_the_run_on_a_net_that_the_front_page_names_is_asserted_by_its_chapter():
    text = (ROOT / "book" / "index.md").read_text()
    chapter = next((ROOT / "book").glob("02_*.ipynb")).read_text()
    assert "over thirteen decades" in text and "assert decades[-1] - decades[0] > 13" in chapter
