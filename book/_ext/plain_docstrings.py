"""Docstrings use |w| for a norm; in reStructuredText bars would be a substitution."""


def _escape_bars(app, what, name, obj, options, lines) -> None:
    """Escape the bars, in place, before anything else reads the lines."""
    lines[:] = [
        line if ">>>" in line else line.replace("|", r"\|") for line in lines
    ]


def setup(app):
    """Register."""
    app.connect("autodoc-process-docstring", _escape_bars, priority=100)
    return {"parallel_read_safe": True}
