"""Small books for the tests of bookkit."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from normcore.bookkit.chapters import MISSING

SETUP = (
    MISSING + "from normcore import bookkit\nfrom normcore.bookkit import claim\n\nprofile = bookkit.setup()"
)
GOOD = 'claim("E1/x", 1, "<", 2, source="a test")'
BAD = 'claim("E1/x", 3, "<", 2, source="a test")'


def chapter(*codes):
    """A notebook with the frame of a chapter around the given cells."""
    return bare(SETUP, *codes, "bookkit.verdict_table()")


def bare(*codes):
    """A notebook of a title and the given cells, which imports nothing."""
    return new_notebook(cells=[new_markdown_cell("# Title"), *map(new_code_cell, codes)])


def write_book(root, url="", **notebooks):
    """A book of these notebooks."""
    (root / "book").mkdir()
    lines = ["format: jb-book", "root: book/index", "chapters:"]
    for name, notebook in notebooks.items():
        nbformat.write(notebook, root / "book" / f"{name}.ipynb")
        lines.append(f"  - file: book/{name}")
    (root / "_toc.yml").write_text("\n".join(lines))
    (root / "_config.yml").write_text(f'repository:\n  url: "{url}"\n')
