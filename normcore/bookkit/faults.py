"""What keeps a notebook from being a stored chapter: its frame, its cells, its outputs."""

import re
from collections.abc import Iterable
from typing import Any

Notebook = Any  # nbformat's NotebookNode has no types


def problems(notebook: Notebook) -> list[str]:
    """What keeps a notebook from being a stored chapter:

    Unexecuted cells, errors, warnings, addresses, long cells, a wrong frame.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = (
        []
        if [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        else ["execution counts are not 1, 2, ..."]
    )
    if not cells or not cells[0].source.rstrip().endswith("profile = bookkit.setup()"):
        found.append("the first code cell is not the set-up cell")
    if not cells or cells[-1].source.strip() != "bookkit.verdict_table()":
        found.append("the last code cell is not bookkit.verdict_table()")
    for number, cell in enumerate(cells, 1):
        found += [
            f"cell {number}: {problem}"
            for problem in (*_source_problems(cell.source), *_output_problems(cell.outputs))
        ]
    return found


def _source_problems(source: str) -> Iterable[str]:
    """Faults of a cell's code."""
    lines = source.splitlines()
    if len(lines) > 25:
        yield f"{len(lines)} lines, more than 25"
    if lines and lines[-1].rstrip().endswith(";"):
        yield "ends in a semicolon"
    if re.search(r"^\s*class ", source, re.MULTILINE):
        yield "defines a class"
    if len(re.findall(r"^\s*def ", source, re.MULTILINE)) > 2:
        yield "defines more than two functions"
    if ".backward()" in source:
        yield "holds a training loop"


def _output_problems(outputs: Iterable[Any]) -> Iterable[str]:
    """Faults of a cell's outputs."""
    for output in outputs:
        if output.output_type == "error":
            yield f"stored error {output.ename}"
        if output.output_type == "stream" and output.name == "stderr":
            yield f"stderr: {output.text[:80]!r}"
        data = output.get("data", {})
        if any("widget" in kind for kind in data):
            yield "widget output"
        if re.search(r"\bat 0x[0-9a-f]+", str(data.get("text/plain", "")) + str(output.get("text", ""))):
            yield "an address in the output"
