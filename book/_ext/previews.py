"""What a link leads to, kept beside the pages: a theorem, equation, figure, reference or function, by page and id.

`previews.js` shows it where a link is hovered or focused. A script a page, so that it works from a file.
"""

import json
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

KINDS = (nodes.math_block, nodes.citation, nodes.figure, addnodes.desc)
CLASSES = {"proof", "exercise"}
PARAGRAPHS = 2
"""How much of a function's description is shown."""

found: dict[str, dict[str, str]] = {}


def worth_showing(node) -> bool:
    """Whether links to this node have a preview."""
    return isinstance(node, KINDS) or (
        isinstance(node, nodes.Element)
        and bool(CLASSES & set(node.get("classes", [])))
    )


def names(node) -> list[str]:
    """The ids under which a node is linked."""
    if isinstance(node, addnodes.desc):
        return [
            id
            for part in node.findall(addnodes.desc_signature)
            if part.parent is node
            for id in part["ids"]
        ]
    return node["ids"]


def brief(node):
    """The node; of a function, the signature and how its description begins."""
    if not isinstance(node, addnodes.desc):
        return node
    short = node.deepcopy()
    for part in short.children:
        if isinstance(part, addnodes.desc_content):
            texts = [one for one in part if isinstance(one, nodes.paragraph)]
            part.children = texts[:PARAGRAPHS]
    return short


def as_html(builder, doctree, node) -> str:
    """A node of a page as HTML."""
    visitor = builder.create_translator(doctree, builder)
    node.walkabout(visitor)
    return "".join(visitor.body)


def remember(app, pagename, templatename, context, doctree) -> None:
    """Keep what a page has to show, as HTML."""
    if doctree is None or app.builder.name != "html":
        return
    found[pagename] = {
        id: as_html(app.builder, doctree, brief(node))
        for node in doctree.findall(worth_showing)
        for id in names(node)
    }


def write(app, exception) -> None:
    """A script a page."""
    if exception is not None:
        return
    for page, shown in found.items():
        path = Path(app.outdir) / "_static" / "previews" / f"{page}.js"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"previews[{json.dumps(page)}] = {json.dumps(shown)};\n"
        path.write_text(text, encoding="utf-8")


def setup(app):
    """Register."""
    app.connect("html-page-context", remember)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}
