"""What keeps a notebook from being a stored chapter: its frame, its cells, its directives, its outputs."""

import ast
import re
from collections.abc import Iterable, Iterator
from typing import Any

Notebook = Any  # nbformat's NotebookNode has no types

COLUMNS = 84
"""What a page of the book shows without cutting."""

FOLDED = {"hide-input", "remove-input"}
LONGEST = {False: 30, True: 60}
"""Lines of a cell in the reader's way, and of a folded one."""


def problems(notebook: Notebook, first_lines: str) -> list[str]:
    """Name what keeps an executed notebook from being a stored chapter, whose set-up cell begins with these lines."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = []
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("execution counts are not 1, 2, ...")
    source = cells[0].source.rstrip() if cells else ""
    if not (source.startswith(first_lines) and source.endswith("profile = bookkit.setup()")):
        found.append("the first code cell is not the set-up cell")
    if not cells or cells[-1].source.strip() != "bookkit.verdict_table()":
        found.append("the last code cell is not bookkit.verdict_table()")
    for number, cell in enumerate(cells, 1):
        faults = [*_source_problems(cell), *_output_problems(cell.outputs)]
        found += [f"cell {number}: {fault}" for fault in faults]
    return found + [fault for cell in notebook.cells for fault in _text_problems(cell)]


def _source_problems(cell: Notebook) -> Iterable[str]:
    lines, folded = cell.source.splitlines(), bool(FOLDED & set(cell.metadata.get("tags", [])))
    if len(lines) > LONGEST[folded]:
        yield f"{len(lines)} lines, more than {LONGEST[folded]}"
    if any(len(line) > COLUMNS for line in lines):
        yield f"a line of more than {COLUMNS} columns"
    if lines and lines[-1].rstrip().endswith(";"):
        yield "ends in a semicolon"
    if re.search(r"^\s*class ", cell.source, re.MULTILINE):
        yield "defines a class"
    if len(re.findall(r"^\s*def ", cell.source, re.MULTILINE)) > 2:
        yield "defines more than two functions"
    if ".backward()" in cell.source:
        yield "holds a training loop"
    if not folded and only_draws_or_claims(cell.source):
        yield "only draws or claims, and is not tagged hide-input"


def only_draws_or_claims(source: str) -> bool:
    """Whether a cell is for the eye or for the record, and not a step of the argument.

    Example:
        >>> only_draws_or_claims('claim("E1/a", gap, "<", 2, source="x")')
        True
        >>> only_draws_or_claims('run = lab.run(net); claim("E1/a", run.gap, "<", 2, source="x")')
        False

    """
    if source.lstrip().startswith(("%", "!")):
        return False
    body = ast.parse(source).body
    figures = [n for n in body if isinstance(n, ast.With) and "plots.panels" in ast.unparse(n.items[0])]
    shows = [node for node in body if node in figures or "claim(" in ast.unparse(node)]
    return bool(shows) and not any(_works(node) for node in body if node not in shows)


def _works(node: ast.stmt) -> bool:
    """Whether a statement trains, solves or defines, rather than reads numbers off what is there."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return False
    text = ast.unparse(node)
    return isinstance(node, ast.FunctionDef) or any(name in text for name in ("lab.", "nc.", "sp."))


def directives(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """The directives of a Markdown cell, as (name, title, option lines)."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        opening = re.match(r"\s*:{3,}\s*\{([\w:-]+)\}\s*(.*)", line)
        if opening:
            options = []
            for option in lines[start + 1 :]:
                if not re.match(r"\s*:[\w-]+:", option):
                    break
                options.append(option.strip())
            yield opening[1], opening[2].strip(), options


def _text_problems(cell: Notebook) -> Iterable[str]:
    if cell.cell_type != "markdown":
        return
    for name, title, options in directives(cell.source):
        keys = [option.split(":")[1] for option in options]
        if len(set(keys)) < len(keys):
            yield f"{{{name}}} {title!r} gives an option twice: {', '.join(options)}"
        if any("-block-" in option for option in options):
            yield f"{{{name}}} {title!r} has a label that no person wrote"


def _output_problems(outputs: Iterable[Any]) -> Iterable[str]:
    for output in outputs:
        if output.output_type == "error":
            yield f"stored error {output.ename}"
        if output.output_type == "stream" and output.name == "stderr":
            yield f"stderr: {output.text[:80]!r}"
        data = output.get("data", {})
        if any("widget" in kind for kind in data):
            yield "widget output"
        text = str(data.get("text/plain", "")) + str(output.get("text", ""))
        if re.search(r"\bat 0x[0-9a-f]+", text):
            yield "an address in the output"
        if "(unexpected)" in text:
            yield "a check that came out otherwise than the book says"
