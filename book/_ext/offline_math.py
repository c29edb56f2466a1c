"""Serve MathJax from the book itself, so that formulas are typeset without a network."""

import shutil
from importlib import metadata
from pathlib import Path

PARTS = (
    "tex-chtml.js",
    "output/chtml/fonts/woff-v2",
    "input/tex/extensions",
    "a11y",
    "ui",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
)


def _source() -> Path:
    """The folder of tex-chtml.js in the installed package (whose name is no importable one)."""
    files = metadata.files("sphinx-mathjax-offline") or []
    return next(
        Path(file.locate()).parent for file in files if file.name == "tex-chtml.js"
    )


def _copy(app, exception) -> None:
    """Copy the parts of MathJax that pages load."""
    if exception is not None or app.builder.format != "html":
        return
    source, target = _source(), Path(app.outdir) / "_static" / "mathjax"
    for part in PARTS:
        path = source / part
        if path.is_dir():
            shutil.copytree(path, target / part, dirs_exist_ok=True)
        elif path.exists():
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / part)


def setup(app):
    """Register."""
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.config.mathjax_options = {"defer": "defer"}
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True}
