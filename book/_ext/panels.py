"""A figure of several panels is cut at the blank columns between them, so that panels stand in a row or, on a phone, stack."""

import itertools
from pathlib import Path

import numpy as np
from docutils import nodes
from PIL import Image

NARROWEST = 0.11
"""Of a figure's width: what is narrower is a label, not a panel."""

BLANK = 14
"""Pixels: what constrained layout leaves between panels at 220 dpi is more, the gap between two words is less."""


def cuts(picture: Image.Image) -> list[int]:
    """The columns, in pixels, at which to cut: in the first wide blank after a panel, behind the words beside its curves."""
    pixels = np.asarray(picture.convert("L")).astype(int)
    drawn = (abs(pixels - pixels[0, 0]) > 8).any(axis=0)
    edges = np.flatnonzero(np.diff(drawn.astype(int), prepend=0, append=0))
    spans = edges.reshape(-1, 2)
    panels = np.flatnonzero(np.diff(spans) >= NARROWEST * picture.width)
    found = []
    for here, there in itertools.pairwise(panels):
        ends, starts = spans[here:there, 1], spans[here + 1 : there + 1, 0]
        wide = np.flatnonzero(starts - ends >= BLANK)
        found += [int(ends[k] + starts[k]) // 2 for k in wide[:1]]
    return found


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
            panel["width"] = f"{100 * share:.3f}%"
            if (
                share < 1
            ):  # a panel is as wide as a phone; a whole figure leads to its picture
                panel["classes"] = [*image["classes"], "no-scaled-link"]
                panel["alt"] = "" if row.children else image["alt"]
            row += panel
        row["classes"] += ["several"] if len(row) > 1 else []
        image.replace_self(row)


def setup(app):
    """Register; before Sphinx collects the images of a page."""
    app.connect("doctree-read", lay_out, priority=400)
    return {"parallel_read_safe": True}
