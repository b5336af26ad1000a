"""`python -m tests.fuzz WHAT --count N --seed S`: run a module beside this one; fail on any finding."""

from __future__ import annotations

import argparse
import importlib
import sys


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("what", help="images, ...")
    arguments.add_argument("--count", type=int, default=1000, help="how many inputs")
    arguments.add_argument("--seed", type=int, default=0, help="of the first one; the others follow")
    found = arguments.parse_args()
    findings: list[str] = importlib.import_module(f"tests.fuzz.{found.what}").run(found.count, found.seed)
    for finding in findings:
        print(finding)  # noqa: T201 - what this command is for
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
