"""The papers' own runs: python -m normcore.experiments {exponential_lr,intrinsic_lr,catapult} --size {paper,small,tiny}."""

import importlib
import sys

from normcore.experiments.stored import command_line

COMMANDS = ("exponential_lr", "intrinsic_lr", "catapult")


def main(arguments: list[str]) -> int:
    """Run what the first argument names, as the others ask."""
    if arguments[:1] and arguments[0] in COMMANDS:
        module = importlib.import_module(f"normcore.experiments.{arguments[0]}")
        return command_line(module.RUNS, module.__doc__ or "", arguments[1:])
    print(__doc__)
    return 0 if arguments[:1] in (["--help"], ["-h"]) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
