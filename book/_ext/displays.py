r"""A displayed formula of several parts, set apart by `\qquad`, becomes parts that stand below each other on a phone."""

import re

from docutils import nodes

DEPTH = {"{": 1, "}": -1, r"\left": 1, r"\right": -1, r"\begin": 1, r"\end": -1}
MARKS = re.compile(r"\\(?:left|right|begin|end|qquad)(?![A-Za-z])|(?<!\\)[{}]")

LONG = 100
"""Characters of TeX from which a part is set smaller in print."""


def parts(text: str) -> list[str]:
    r"""The parts between those `\qquad` that stand in no group."""
    depth, start, found = 0, 0, []
    for mark in MARKS.finditer(text):
        if mark[0] == r"\qquad" and depth == 0:
            found.append(text[start : mark.start()])
            start = mark.end()
        depth += DEPTH.get(mark[0], 0)
    return [part.strip() for part in (*found, text[start:]) if part.strip()]


def split(app, doctree, docname) -> None:
    """Close and open the display between parts; the pages lay them out as words."""
    if app.builder.format != "html":
        return
    for block in doctree.findall(nodes.math_block):
        text = block.astext()
        if max(map(len, parts(text)), default=0) > LONG:
            block["classes"].append("long")
        if "\\\\" not in text and "&" not in text:
            block.clear()
            block += nodes.Text(r" \] \[ ".join(parts(text)))


def setup(app):
    """Register."""
    app.connect("doctree-resolved", split)
    return {"parallel_read_safe": True}
