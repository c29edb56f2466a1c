"""python tests/on_device.py 11: the code of a chapter on the simulated device, cell by cell, with its claims."""

import sys
import warnings
from pathlib import Path

import matplotlib
import nbformat
from device import NAME, Device

from normcore import bookkit
from normcore.bookkit.profile import Profile

BOOK = Path(__file__).parent.parent / "book"


def main(number):
    (path,) = BOOK.glob(f"{number}_*.ipynb")
    matplotlib.use("Agg")
    warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
    scope = {"setup": on_device}
    for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type != "code":
            continue
        code = compile(
            cell.source.replace("bookkit.setup()", "setup()"), f"cell {i} of chapter {number}", "exec"
        )
        with Device():
            exec(code, scope)


def on_device():
    bookkit.setup()
    return Profile("ci", NAME)


if __name__ == "__main__":
    main(sys.argv[1])
