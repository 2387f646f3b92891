#!/usr/bin/env python3
"""Shows that the tests find the mistakes of other lock libraries: makes each in ours, and runs the engine's tests.

`mutants.py [NAME…]`, all without a name. A mistake that no test finds fails. The tests run on the real engine and the
real quorum, most of them in a simulated world; `POLYLOCK_SEEDS` says how many schedules each of these plays.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

# By the numbers that the research on these libraries gave them; R13 is a rule of Redlock that none follows.
MUTANTS = {
    "D1": "a lock is handed out whose time is over already",
    "D2": "one owner token for all attempts of a call",
    "D3": "an owner token of the thread, not of the attempt",
    "D5": "the ttl counts from the answer, not from the question",
    "D6": "nothing is taken off for clocks that run apart",
    "D7": "an extension counts servers that had lost the lock",
    "D8": "an extension counts after the deadline",
    "D9": "an extension counts from its answer",
    "D10": "a lease is extended for ever",
    "D11": "servers that did not answer are not asked to release",
    "D12": "an attempt whose outcome is unknown is not undone",
    "D13": "the part that was granted is kept between attempts",
    "D14": "a cancelled attempt is not undone",
    "D15": "a request may be carried out however late it is",
    "D16": "every server is waited for",
    "D20": "owner tokens can be guessed",
    "D22": "those who clash pause for the same time",
    "D23": "less than a majority is enough",
    "D24": "an extension counts servers where somebody else holds",
    "D25": "an error of one server ends the attempt",
    "D27": "a loss is not told",
    "D28": "the fencing token is the largest number seen, without agreement",
    "D30": "a ttl that is too short is taken",
    "R13": "a server that was restarted votes at once",
    "permits": "a permit takes a majority, whichever numbers it gave",
}
# What is run: the decisions and the simulation, not what needs servers.
TESTS = ["backend::redis", "lease::", "token::", "undo::", "acquire::", "options::"]
# The longest that one mistake may take to be found, in seconds: a mistake may also make the tests hang.
LIMIT = 300.0
FAILED = re.compile(r"^test (\S+) .*FAILED$", re.M)


def build() -> str:
    """The program with the engine's tests."""
    command = [
        "cargo",
        "test",
        "--package=polylock",
        "--lib",
        "--config=profile.dev.package.polylock.opt-level=2",
        "--no-run",
        "--message-format=json",
        "--quiet",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return next(str(message["executable"]) for message in messages if message.get("executable"))


def run(program: str, mutant: str | None) -> tuple[bool, str]:
    """Whether the tests pass, and which do not."""
    environment = os.environ | {"RUST_BACKTRACE": "0"} | ({"POLYLOCK_MUTANT": mutant} if mutant else {})
    try:
        done = subprocess.run([program, *TESTS], env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return False, "(the tests hang)"
    failed = FAILED.findall(done.stdout)
    return done.returncode == 0, ", ".join(name.rpartition("::")[2] for name in failed) or "(the tests broke off)"


def main(names: list[str]) -> int:
    program = build()
    if not run(program, None)[0]:
        print("mutants: the tests fail without a mistake")
        return 1
    survivors = 0
    for name in names or MUTANTS:
        began = time.monotonic()
        passes, tests = run(program, name)
        survivors += passes
        found = "NOT FOUND" if passes else f"found by {tests}"
        print(f"{name:4} {MUTANTS[name]}: {found} ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"mutants: {len(names or MUTANTS) - survivors} passed, {survivors} failed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
