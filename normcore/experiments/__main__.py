"""The papers' own runs: python -m normcore.experiments {exponential_lr,intrinsic_lr,catapult} --size {paper,small,tiny}."""

import importlib
import sys

COMMANDS = ("exponential_lr", "intrinsic_lr", "catapult")


def main(arguments: list[str]) -> int:
    """Hand the arguments to the experiment that the first one names."""
    if arguments[:1] and arguments[0] in COMMANDS:
        module = importlib.import_module(f"normcore.experiments.{arguments[0]}")
        return int(module.main(arguments[1:]))
    print(__doc__)
    return 0 if arguments[:1] in (["--help"], ["-h"]) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
