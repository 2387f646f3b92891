#!/usr/bin/env python3
"""Runs test suites one after the other and counts: `suite.py NAME=COMMAND…`.

Each suite's output goes through as it comes. All of them run, also after a failure; then a table of what passed, and
the closing line `N passed, N failed`. Exits with 1 if any suite failed or ran no test.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

# How each runner closes: cargo test, pytest, node's test runner (two reporters), and our own plain line.
CLOSINGS = [
    re.compile(r"^test result: \w+\. (?P<passed>\d+) passed; (?P<failed>\d+) failed"),
    re.compile(
        r"^(?:=+ )?(?=\d+ (?:failed|passed))(?:(?P<failed>\d+) failed)?,? ?(?:(?P<passed>\d+) passed)?.* in [\d.]+s"
    ),
    re.compile(r"^(?:#|ℹ) pass (?P<passed>\d+)$"),
    re.compile(r"^(?:#|ℹ) fail (?P<failed>\d+)$"),
    re.compile(r"^(?:[\w ]+: )?(?P<passed>\d+) passed, (?P<failed>\d+) failed"),
]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def run(name: str, command: str) -> tuple[int, int]:
    """How many tests passed and failed. A suite that fails without counting a failure counts as one."""
    print(f"\n== {name} ==", flush=True)
    passed = failed = 0
    process = subprocess.Popen(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        plain = COLOUR.sub("", line).strip()
        found = next((match for closing in CLOSINGS if (match := closing.match(plain))), None)
        if found:
            counts = found.groupdict()
            passed += int(counts.get("passed") or 0)
            failed += int(counts.get("failed") or 0)
    if process.wait() != 0 or passed == 0:
        failed = max(failed, 1)
    return passed, failed


def main(suites: list[str]) -> int:
    rows = []
    for suite in suites:
        name, _, command = suite.partition("=")
        began = time.monotonic()
        passed, failed = run(name, command)
        rows.append((name, passed, failed, time.monotonic() - began))
    print("\n== all ==")
    for name, passed, failed, seconds in rows:
        print(f"{name:10} {passed:5} passed {failed:5} failed {seconds:7.1f} s")
    failed = sum(row[2] for row in rows)
    print(f"{sum(row[1] for row in rows)} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
