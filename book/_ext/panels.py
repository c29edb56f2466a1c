"""A figure of several panels is cut at the blank columns between them, so that panels stand in a row or, on a phone, stack."""

import itertools
from pathlib import Path

import numpy as np
from docutils import nodes
from PIL import Image

NARROWEST = 0.18
"""Of a figure's width: what is narrower is a label, not a panel."""


def cuts(picture: Image.Image) -> list[int]:
    """The columns, in pixels, at which to cut: in the blank before a panel and the words beside its axis, which are tall."""
    pixels = np.asarray(picture.convert("L")).astype(int)
    drawn = abs(pixels - pixels[0, 0]) > 8
    edges = np.diff(drawn.any(axis=0).astype(int), prepend=0, append=0)
    spans = np.flatnonzero(edges).reshape(-1, 2)
    panels = [
        i for i, (a, b) in enumerate(spans) if b - a >= NARROWEST * picture.width
    ]
    found = []
    for here, there in itertools.pairwise(panels):
        first = next(
            k
            for k in range(here + 1, there + 1)
            if k == there or tall(drawn, spans[k])
        )
        found.append(int(spans[first - 1][1] + spans[first][0]) // 2)
    return found


def tall(drawn, span) -> bool:
    """Whether these columns hold a rotated label or a column of numbers, not a word beside a curve or a digit below."""
    rows = np.flatnonzero(drawn[:, span[0] : span[1]].any(axis=1))
    return np.ptp(rows) > max(span[1] - span[0], 0.04 * len(drawn))


def cut(path: Path) -> list[tuple[Path, float]]:
    """The panels of a figure as files beside it, each with its share of the width."""
    with Image.open(path) as picture:
        edges = [0, *cuts(picture), picture.width]
        if len(edges) == 2:
            return [(path, 1.0)]
        found = []
        for i, (left, right) in enumerate(itertools.pairwise(edges)):
            part = path.with_name(f"{path.stem}-{i}{path.suffix}")
            picture.crop((left, 0, right, picture.height)).save(part)
            found.append((part, (right - left) / picture.width))
    return found


def lay_out(app, doctree) -> None:
    """Put the panels of each figure that a cell drew into a row of their own."""
    env = app.env
    for image in list(doctree.findall(nodes.image)):
        name, path = env.relfn2path(image["uri"], env.docname)
        if not name.endswith(".png") or "jupyter_execute" not in path:
            continue
        row = nodes.container(classes=["panels"])
        for part, share in cut(Path(path)):
            panel = image.copy()
            panel["uri"] = image["uri"].replace(Path(path).name, part.name)
            if share < 1:
                panel["width"] = f"{100 * share:.3f}%"
                panel["alt"] = "" if row.children else image["alt"]
            row += panel
        row["classes"] += ["several"] if len(row) > 1 else []
        image.replace_self(row)


def setup(app):
    """Register; before Sphinx collects the images of a page."""
    app.connect("doctree-read", lay_out, priority=400)
    return {"parallel_read_safe": True}
