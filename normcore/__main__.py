"""python -m normcore diagnose package.module:factory; the factory returns the arguments of `diagnose` as a dict."""

import argparse
import importlib
import sys
import traceback

from normcore.doctor.examination import diagnose


def main(arguments: list[str]) -> int:
    """Print the page, or JSON; 0 fine, 1 there are warnings, 2 it could not be made."""
    parser = argparse.ArgumentParser("python -m normcore", description=__doc__)
    parser.add_argument("command", choices=["diagnose"])
    parser.add_argument("factory", help="package.module:factory, found from the folder you are in")
    parser.add_argument("--json", action="store_true", help="for machines")
    given = parser.parse_args(arguments)
    module, colon, name = given.factory.partition(":")
    if not (module and colon and name):
        parser.error(f"factory must be package.module:name, got {given.factory!r}")
    try:
        found = diagnose(**getattr(importlib.import_module(module), name)())
    except Exception:
        traceback.print_exc()
        return 2
    print(found.to_json() if given.json else found)
    return 1 if found.warnings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
