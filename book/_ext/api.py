"""The directive `api`: the public names that live in a package, as a summary and then one by one.

```{eval-rst}
.. api:: normcore.equivalence
   :without: normcore.equivalence.theorems
```
"""

import importlib
import inspect

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

DOORS = ("normcore", "normcore.catapult", "normcore.lab", "normcore.bookkit")
"""Where public names are imported from, each with its `__all__`."""


def public(package: str) -> list[tuple[str, str]]:
    """(door, name) of the public functions and classes that a package defines, in the order of `__all__`."""
    found = []
    for door in DOORS:
        module = importlib.import_module(door)
        for name in module.__all__:
            made = getattr(getattr(module, name), "__module__", "")
            if f"{made}.".startswith(f"{package}."):
                found.append((door, name))
    return found


def text(names: list[tuple[str, str]]) -> list[str]:
    """What autosummary and autodoc make of them."""
    lines, doors = [], dict.fromkeys(door for door, _ in names)
    for door in doors:
        own = [name for here, name in names if here == door]
        lines += [
            f".. currentmodule:: {door}",
            "",
            ".. autosummary::",
            "   :nosignatures:",
            "",
        ]
        lines += [f"   {name}" for name in own] + [""]
    for door, name in names:
        kind = (
            "class"
            if inspect.isclass(getattr(importlib.import_module(door), name))
            else "function"
        )
        lines += [f".. currentmodule:: {door}", "", f".. auto{kind}:: {name}"]
        lines += ["   :members:", ""] if kind == "class" else [""]
    return lines


class Api(SphinxDirective):
    """The names of a package, but for those of a module that stands elsewhere."""

    required_arguments = 1
    option_spec = {"without": directives.unchanged}

    def run(self):
        """Parse the text that autosummary and autodoc ask for."""
        others = public(self.options.get("without", "-"))
        names = [name for name in public(self.arguments[0]) if name not in others]
        if not names:
            raise self.error(f"no public name lives in {self.arguments[0]}")
        part, lines = nodes.container(), StringList(text(names), source="api")
        self.state.nested_parse(lines, self.content_offset, part)
        return part.children


def setup(app):
    """Register."""
    app.add_directive("api", Api)
    return {"parallel_read_safe": True}
