"""Execute the chapters, store them in one canonical form, and check that form.

python -m normcore.bookkit.chapters execute DEST   executes every chapter of _toc.yml into DEST
python -m normcore.bookkit.chapters store          executes them and writes the outputs back
python -m normcore.bookkit.chapters check          names what is wrong with the stored ones
"""

import concurrent.futures
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from normcore.bookkit.claims import VERDICTS, Record, parse_records
from normcore.bookkit.faults import problems
from normcore.bookkit.profile import current_profile

Notebook = Any  # nbformat's NotebookNode has no types

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL_METADATA = ("tags", "mystnb")
CELL_TIMEOUT = 300
LARGEST = 1_500_000
"""Bytes of a chapter with its outputs."""


@dataclass(frozen=True)
class Outcome:
    """What came of executing a notebook: seconds, and the error of the first cell that failed."""

    seconds: float
    error: str | None = None


def chapter_paths(root: Path) -> list[Path]:
    """The notebooks named in _toc.yml, in the book's order."""
    names = re.findall(r"file:\s*(\S+)", (root / "_toc.yml").read_text())
    paths = [(root / name).with_suffix(".ipynb") for name in names]
    return [path for path in paths if path.exists()]


def execute_notebook(notebook: Notebook, folder: Path) -> Outcome:
    """Execute a notebook in place, with one thread and in the given folder."""
    os.environ.update(OMP_NUM_THREADS="1", PYTHONHASHSEED="0")
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=40"],  # no warning about local connections
        coalesce_streams=True,
    )
    start = time.perf_counter()
    try:
        client.execute()
    except CellExecutionError as error:
        return Outcome(time.perf_counter() - start, f"{error.ename}: {error.evalue}")
    except (CellTimeoutError, DeadKernelError) as error:
        return Outcome(time.perf_counter() - start, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    notebook.metadata["normcore"] = {"profile": current_profile().name}
    return Outcome(time.perf_counter() - start)


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
                output.pop(
                    "execution_count", None
                ) if output.output_type != "execute_result" else output.update(execution_count=count)
                if "metadata" in output:
                    output.metadata = {}
    return notebook


def verdict_text(notebook: Notebook) -> str:
    """What the last code cell printed: the chapter's verdict table."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    texts = [
        output.data.get("text/plain", "")
        for output in (cells[-1].outputs if cells else [])
        if "data" in output
    ]
    return "\n".join(texts)


def notebook_records(path: Path) -> list[Record]:
    """The claims stored in a chapter."""
    return parse_records(verdict_text(nbformat.read(path, as_version=4)))


def notebook_profile(path: Path) -> str:
    """The profile a chapter was executed in; empty where it is not stored."""
    return str(nbformat.read(path, as_version=4).metadata.get("normcore", {}).get("profile", ""))


def tally(records: Iterable[Record]) -> str:
    """How many claims held, and how many did not reproduce if any."""
    verdicts = [record.verdict for record in records]
    failed = verdicts.count(VERDICTS[-1])
    return f"{len(verdicts) - failed} claims held" + (f", {failed} did not reproduce" if failed else "")


def _execute_one(path: Path, target: Path) -> tuple[Path, Outcome, str]:
    """Execute a chapter, write it to the target in canonical form, and tally its claims."""
    notebook = nbformat.read(path, as_version=4)
    outcome = execute_notebook(notebook, path.parent)
    claims = ""
    if outcome.error is None:
        claims = tally(parse_records(verdict_text(notebook)))
        target.parent.mkdir(parents=True, exist_ok=True)
        text = nbformat.writes(canonical(notebook)) + "\n"
        scratch = target.with_suffix(".part")
        scratch.write_text(text)
        scratch.replace(target)
    return path, outcome, claims


def execute_all(root: Path, destination: Path) -> bool:
    """Execute every chapter, two at a time, with a line each; True when all went through."""
    paths = chapter_paths(root)
    good = True
    with concurrent.futures.ProcessPoolExecutor(max_workers=2) as pool:
        jobs = [pool.submit(_execute_one, path, destination / path.relative_to(root)) for path in paths]
        for job in concurrent.futures.as_completed(jobs):
            path, outcome, claims = job.result()
            if outcome.error is None:
                print(f"ok      {path.stem:28} {outcome.seconds:6.1f} s  {claims}", flush=True)
            else:
                good = False
                print(f"FAILED  {path.stem:28} {outcome.seconds:6.1f} s  {outcome.error}", flush=True)
    return good


def check_all(root: Path) -> bool:
    """Print what keeps each chapter from its canonical form; True when nothing does."""
    good = True
    for path in chapter_paths(root):
        text = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(text, as_version=4)
        found = problems(notebook)
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
    if arguments[:1] == ["store"] and len(arguments) == 1:
        return 0 if execute_all(root, root) else 1
    if arguments[:1] == ["execute"] and len(arguments) == 2:
        return 0 if execute_all(root, Path(arguments[1])) else 1
    if arguments == ["check"]:
        return 0 if check_all(root) else 1
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
