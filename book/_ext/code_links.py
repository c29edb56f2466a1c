"""Names of the package in the code of chapters lead to the API: `nc.texp`, `lab.train`, `nc.catapult.simulate`."""

import re

MODULES = {
    "nc": "normcore",
    "lab": "normcore.lab",
    "bookkit": "normcore.bookkit",
}
"""What the set-up cell of every chapter imports, and under which name."""

DOT = '<span class="o">.</span>'
NAME = r'<span class="n">(\w+)</span>'
CHAIN = re.compile(rf"(?<!{re.escape(DOT)}){NAME}(?:{re.escape(DOT)}{NAME})+")


def linked(chain: str, address) -> str:
    """The spans of `a.b.c` with a link around the longest beginning that has an address; without one, as they are."""
    parts = re.findall(NAME, chain)
    spans = chain.split(DOT)
    for end in range(len(parts), 1, -1):
        where = address(".".join([MODULES.get(parts[0], ""), *parts[1:end]]))
        if where:
            link = f'<a class="reference internal code-link" href="{where}">{DOT.join(spans[:end])}</a>'
            return DOT.join([link, *spans[end:]])
    return chain


def link(app, pagename, templatename, context, doctree) -> None:
    """Link each name that the API documents."""
    objects = app.env.get_domain("py").objects

    def address(name: str) -> str | None:
        if name not in objects:
            return None
        page = app.builder.get_relative_uri(pagename, objects[name].docname)
        return f"{page}#{objects[name].node_id}"

    if doctree is not None:
        context["body"] = CHAIN.sub(
            lambda found: linked(found[0], address), context["body"]
        )


def setup(app):
    """Register."""
    app.connect("html-page-context", link)
    return {"parallel_read_safe": True}
