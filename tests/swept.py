"""A sweep to interrupt: each of eight cells writes a file, and the last four wait for a file `quick` in the folder.

Usage: swept.py FOLDER.
"""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from normcore.lab import grid, sweep


def experiment(i, folder, quick):
    """Says that it began, and which process it is."""
    Path(folder, f"{i}-{time.time_ns()}").write_text(str(os.getpid()))
    while i >= 4 and not quick.exists():
        time.sleep(0.2)
    return {"twice": 2 * i}


def of(folder):
    """The experiment in a folder."""
    return partial(experiment, folder=folder / "begun", quick=folder / "quick")


CELLS = grid(i=range(8))

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    sweep(of(Path(sys.argv[1])), CELLS, folder=Path(sys.argv[1], "kept"), workers=2)
