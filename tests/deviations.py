#!/usr/bin/env python3
"""Checks docs/redlock-deviations.md: all of D1 to D30 are there, and each test and mutant that it names exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mutants import MUTANTS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/redlock-deviations.md"
ROW = re.compile(r"^\| (D\d+) \| (.+?) \| (.+?) \| (.*?) ?\|$", re.M)
TEST = re.compile(r"`([\w./]+)` ((?:`\w+`(?:, )?)+)")
# How a test begins in each language.
BEGINNINGS = {".rs": "fn {}(", ".py": "def {}(", ".c": "static void {}("}


def missing() -> list[str]:
    """What the page promises and is not there."""
    rows = ROW.findall(PAGE.read_text())
    wrong = [
        f"D{number} is not in the table once"
        for number in range(1, 31)
        if [r[0] for r in rows].count(f"D{number}") != 1
    ]
    for name, _, tests, mutant in rows:
        named = TEST.findall(tests)
        if not named:
            wrong.append(f"{name} has no test")
        for file, functions in named:
            path = ROOT / file
            source = path.read_text() if path.is_file() else ""
            for function in re.findall(r"\w+", functions):
                if BEGINNINGS.get(path.suffix, "{}").format(function) not in source:
                    wrong.append(f"{name}: there is no test {function} in {file}")
        if (mutant == "yes") != (name in MUTANTS):
            wrong.append(f"{name}: the table and tests/mutants.py do not agree on a mutant")
    return wrong


if __name__ == "__main__":
    found = missing()
    print("\n".join(found), end="\n" if found else "")
    print(f"deviations: {int(not found)} passed, {int(bool(found))} failed")
    sys.exit(bool(found))
