#!/usr/bin/env python3
"""The harness finds workers that do wrong, with real servers: `test_mutants.py PYTHON`, one that has the package."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import textwrap

HERE = pathlib.Path(__file__).parent
FOUND = {
    "believing": "two at a time",
    "deaf": "was lost, and not told so",
    "repeating": "have the same token",
}
# What a worker does and what it meets is drawn, so a mistake may need more than one run to show all that it leads to.
RUNS, SECONDS = 10, 6


def finds(python: str, mistake: str, violation: str) -> bool:
    right, wrong = f"{python} {HERE / 'workers/worker.py'}", f"{python} {HERE / 'workers/mutant.py'} {mistake}"
    options = ["--only", "redis", "--seconds", str(SECONDS)]
    for _ in range(RUNS):
        run = subprocess.run(
            [HERE / "faults.py", *options, f"right={right}", f"wrong={wrong}"], capture_output=True, text=True
        )
        if run.returncode == 1 and violation in run.stdout:
            return True
    print(textwrap.indent(run.stdout + run.stderr, "| "))  # with no line that is counted as one of this suite's
    return False


def main() -> int:
    missed = [mistake for mistake, violation in FOUND.items() if not finds(sys.argv[1], mistake, violation)]
    for mistake in missed:
        print(f"a worker that is {mistake} was not found out")
    print(f"mutants: {len(FOUND) - len(missed)} passed, {len(missed)} failed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
