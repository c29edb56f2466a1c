"""The directive `{house}`: the rooms of the package and their arrows, drawn from the imports when the book is built."""

import ast
import html
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import normcore

PACKAGE = Path(normcore.__file__).parent
WIDTH, HEIGHT, GAP_X, GAP_Y = 132, 46, 18, 58
DOORS = {"__init__", "__main__"}
"""`import normcore` and `python -m normcore`: ways into the rooms, and none themselves."""


def rooms() -> dict[str, list[Path]]:
    """Room -> its files; a file at the top is a room of its own."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in DOORS:
            found.setdefault(parts[0], []).append(path)
    return found


def uses(files: list[Path]) -> set[str]:
    """The rooms that these files import from."""
    names = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith("normcore."):
                names.add(module.split(".")[1])
    return names


def floors(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Rooms by floor, the ground first: a room stands just above the highest that it uses."""
    height: dict[str, int] = {}
    while len(height) < len(arrows):
        for room, needs in arrows.items():
            if room not in height and needs <= height.keys():
                height[room] = max((height[n] + 1 for n in needs), default=0)
    return [
        [room for room in arrows if height[room] == i]
        for i in range(max(height.values()) + 1)
    ]


def drawing(arrows: dict[str, set[str]], lines: dict[str, int]) -> str:
    """The house as SVG."""
    plan = floors(arrows)
    across = max(map(len, plan))
    total = across * (WIDTH + GAP_X)
    spots = {
        room: (
            (i + 0.5) * total / len(level),
            (len(plan) - 1 - row) * (HEIGHT + GAP_Y) + HEIGHT / 2 + 4,
        )
        for row, level in enumerate(plan)
        for i, room in enumerate(level)
    }
    parts = []
    for room, needs in arrows.items():
        for other in needs:
            (x1, y1), (x2, y2) = spots[room], spots[other]
            parts.append(
                f'<path d="M{x1:.0f} {y1 + HEIGHT / 2:.0f}L{x2:.0f} {y2 - HEIGHT / 2:.0f}"/>'
            )
    for room, (x, y) in spots.items():
        parts.append(
            f'<rect x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
            f'<text x="{x:.0f}" y="{y - 3:.0f}">{room}</text>'
            f'<text class="small" x="{x:.0f}" y="{y + 14:.0f}">{lines[room]} lines</text>'
        )
    tall = len(plan) * (HEIGHT + GAP_Y) - GAP_Y + 8
    label = "The rooms of the package by floor; every line runs down to a room that is used."
    return f'<svg class="house" viewBox="0 0 {total} {tall}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def first_line(files: list[Path]) -> str:
    """What a room says of itself."""
    door = next((path for path in files if path.name == "__init__.py"), files[0])
    text = ast.get_docstring(ast.parse(door.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0]


class House(SphinxDirective):
    """The drawing, and a line for each room."""

    def run(self):
        found = rooms()
        arrows = {room: uses(files) - {room} for room, files in found.items()}
        lines = {
            room: sum(len(p.read_text().splitlines()) for p in files)
            for room, files in found.items()
        }
        items = "".join(
            f"<li><code>{room}</code> ({len(found[room])} file{'s' * (len(found[room]) > 1)}): "
            f"{html.escape(first_line(found[room]))}</li>"
            for level in reversed(floors(arrows))
            for room in level
        )
        return [
            nodes.raw(
                "", drawing(arrows, lines) + f"<ul>{items}</ul>", format="html"
            )
        ]


def setup(app):
    """Register."""
    app.add_directive("house", House)
    return {"parallel_read_safe": True}
