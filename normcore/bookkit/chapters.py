"""Execute the chapters, store them in one canonical form, check that form, and name what is wrong with a chapter.

python -m normcore.bookkit.chapters execute DEST [02 16 ...]   executes the chapters of _toc.yml into DEST
python -m normcore.bookkit.chapters store [02 16 ...]          executes them and writes the outputs back
python -m normcore.bookkit.chapters check                      names what is wrong with the stored ones
"""

import ast
import concurrent.futures
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from normcore.bookkit.claims import Record, parse_records, tally
from normcore.bookkit.profile import count_of, current_profile, machine
from normcore.files import atomic_write

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
    """Whether a cell is for the eye or for the record, and not a step of the argument."""
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


KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL_METADATA = ("tags", "mystnb")
LARGEST = 2_500_000
"""Bytes of a chapter with its outputs."""

MISSING = """try:
    import normcore as nc
except ImportError as missing:
    hint = 'run `pip install -e ".[book]"` in the clone, then restart the kernel'
    raise ImportError(f"normcore is not installed here: {hint}") from missing
"""
INSTALL = """try:
    import normcore as nc
except ImportError:  # on a fresh notebook server
    %pip install -q "torch-normcore[book] @ git+{url}"
    import normcore as nc
"""


def chapter_paths(root: Path) -> list[Path]:
    """The notebooks named in _toc.yml, in the book's order."""
    names = re.findall(r"file:\s*(\S+)", (root / "_toc.yml").read_text())
    paths = [(root / name).with_suffix(".ipynb") for name in names]
    return [path for path in paths if path.exists()]


def first_lines(root: Path) -> str:
    """How a chapter's first cell begins: with the install from the repository that _config.yml names, if any."""
    found = re.search(r'^repository:\n  url: "(.*)"', (root / "_config.yml").read_text(), re.MULTILINE)
    return INSTALL.format(url=found[1]) if found and found[1] else MISSING


def cell_timeout() -> int | None:
    """Seconds that a cell may take, from NORMCORE_CELL_TIMEOUT; by default a busy machine is waited for."""
    name = "NORMCORE_CELL_TIMEOUT"
    return count_of(name, 0, least=1) if os.environ.get(name) else None


def execute_notebook(notebook: Notebook, folder: Path) -> tuple[float, str | None]:
    """Execute a notebook in place and in the given folder; gives seconds, and the first cell that raised with its error."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONHASHSEED"] = "0"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    client = NotebookClient(
        notebook,
        timeout=cell_timeout(),
        startup_timeout=600,  # a busy machine is waited for
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=40"],  # no warning about local connections
        coalesce_streams=True,
    )
    start = time.perf_counter()
    error = None
    try:
        client.execute()
    except CellExecutionError as raised:
        error = f"{raised.ename}: {raised.evalue}"
    except (CellTimeoutError, DeadKernelError) as raised:
        error = f"{type(raised).__name__}: {str(raised).splitlines()[0]}"
    if error is not None:
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        started = [i for i, cell in enumerate(cells, 1) if cell.execution_count is not None]
        error = f"cell {max(started, default=1)}: {error}"
    notebook.metadata["normcore"] = {"profile": current_profile().name}
    return time.perf_counter() - start, error


def canonical(notebook: Notebook) -> Notebook:
    """The notebook in the one form that is stored: a diff then shows only what changed."""
    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    own = {"normcore": notebook.metadata["normcore"]} if "normcore" in notebook.metadata else {}
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}, **own}
    count = 0
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i:03d}"
        cell.metadata = {key: cell.metadata[key] for key in CELL_METADATA if cell.metadata.get(key)}
        cell.source = cell.source.rstrip()
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                output.pop("execution_count", None)
                if output.output_type == "execute_result":
                    output.execution_count = count
                if "metadata" in output:
                    output.metadata = {}
    return notebook


def verdict_text(notebook: Notebook) -> str:
    """What the last code cell printed: the chapter's verdict table."""
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    shown = [output.data for output in (outputs[-1] if outputs else []) if "data" in output]
    return "\n".join(data.get("text/plain", "") for data in shown)


def notebook_records(path: Path) -> list[Record]:
    """The claims stored in a chapter."""
    return parse_records(verdict_text(nbformat.read(path, as_version=4)))


def notebook_profile(path: Path) -> str:
    """The profile a chapter was executed in; empty where it is not stored."""
    return str(nbformat.read(path, as_version=4).metadata.get("normcore", {}).get("profile", ""))


@dataclass(frozen=True)
class Executed:
    """A chapter that was executed: its time, its checks as far as it came, and its notebook as text."""

    path: Path
    seconds: float
    error: str | None
    records: list[Record]
    text: str

    @property
    def complaints(self) -> list[str]:
        """The cell that raised, and each check that came out otherwise than the book says."""
        raised = [] if self.error is None else [f"{self.path.stem}  {self.error}"]
        return raised + [
            f"{self.path.stem}  {r.id}: {r.measured} {r.relation} {r.bound}  {r.verdict}"
            for r in self.records
            if r.unexpected
        ]


def with_first_lines(notebook: Notebook, lines: str) -> Notebook:
    """The notebook with its set-up cell beginning as _config.yml says, in place."""
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for old in (MISSING, INSTALL):
        start = re.escape(old).replace(r"\{url\}", ".*")
        cell.source = re.sub(r"\A" + start, lambda _: lines, cell.source)
    return notebook


def execute_chapter(path: Path, lines: str) -> Executed:
    """Execute a chapter with these first lines; its file stays as it is."""
    notebook = with_first_lines(nbformat.read(path, as_version=4), lines)
    seconds, error = execute_notebook(notebook, path.parent)
    records = parse_records(verdict_text(notebook)) if error is None else []
    return Executed(path, seconds, error, records, nbformat.writes(canonical(notebook)) + "\n")


def named(root: Path, names: Sequence[str] | None) -> list[Path]:
    """The chapters whose file names begin with one of these ("02", "16"), in that order; by default all."""
    paths = chapter_paths(root)
    found = {name: [path for path in paths if path.stem.startswith(name)] for name in names or [""]}
    if absent := [name for name in names or [] if not found[name]]:
        raise ValueError(f"names: no chapter of {[p.stem for p in paths]} begins with {absent[0]!r}")
    return list(dict.fromkeys(path for those in found.values() for path in those))


def execute_all(root: Path, destination: Path, names: Sequence[str] | None = None) -> bool:
    """Execute chapters, two at a time, with a line each, and write them to the destination; the root stores the outputs.

    A chapter that raised or disagrees with the book is written too, for the reader to see, but not over its own
    source. True when every cell ran and every check came out as the book says.
    """
    complaints = []
    with concurrent.futures.ProcessPoolExecutor(max_workers=2) as pool:
        jobs = [pool.submit(execute_chapter, path, first_lines(root)) for path in named(root, names)]
        for job in concurrent.futures.as_completed(jobs):
            done = job.result()
            complaints += done.complaints
            if not done.complaints or destination != root:
                atomic_write(destination / done.path.relative_to(root), done.text)
            word, what = "FAILED" if done.complaints else "ok", done.error or tally(done.records)
            print(f"{word:7} {done.path.stem:28} {done.seconds:6.1f} s  {what}", flush=True)
    if complaints:
        print(f"Not as the book says, on {machine()}:", *sorted(complaints), sep="\n  ", flush=True)
    return not complaints


def check_all(root: Path) -> bool:
    """Print what keeps each chapter from its canonical form; True when nothing does."""
    good = True
    for path in chapter_paths(root):
        text = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(text, as_version=4)
        found = problems(notebook, first_lines(root))
        if nbformat.writes(canonical(notebook)) + "\n" != text:
            found.append("not in canonical form; `make store` writes it")
        if len(text) > LARGEST:
            found.append(f"{len(text)} bytes, more than {LARGEST}")
        for problem in found:
            good = False
            print(f"{path.stem}: {problem}", flush=True)
    return good


def main(arguments: list[str]) -> int:
    """The command line."""
    root = Path.cwd()
    command, rest = arguments[:1], arguments[1:]
    if command == ["store"]:
        return 0 if execute_all(root, root, rest) else 1
    if command == ["execute"] and rest:
        return 0 if execute_all(root, Path(rest[0]), rest[1:]) else 1
    if arguments == ["check"]:
        return 0 if check_all(root) else 1
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
