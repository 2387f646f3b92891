#!/usr/bin/env python3
"""What crosses languages: `run.py LANGUAGE=COUNTER…`, with each language's counter as tests/demo/demo.py takes it.

The basic example of a language stands beside its counter. Needs the environment of with_servers.py.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def checks(counters: list[str]) -> dict[str, list[str]]:
    """What to run, by what it shows."""
    found = {"the README shows what is run here": [str(HERE / "readme.py")]}
    for counter in counters:
        language, _, command = counter.partition("=")
        before, _, after = command.rpartition("counter")
        found[f"the first example in {language}"] = [
            *shlex.split(f"{before}basic{after}"),
            os.environ["POLYLOCK_TEST_REDIS"],
        ]
    for where, count in (("REDIS", 1000), ("REDIS_AUTH", 250), ("REDLOCK", 250), ("POSTGRES", 150), ("FILE", 1000)):
        demo = [str(HERE.parent / "demo" / "demo.py"), "--count", str(count)]
        url = os.environ[f"POLYLOCK_TEST_{where}"]
        found[f"{len(counters)} languages at once: {where}"] = [*demo, "--url", url, *counters]
    return found


def main(counters: list[str]) -> int:
    failed = 0
    everything = checks(counters)
    for name, command in everything.items():
        print(f"\n-- {name}", flush=True)
        if subprocess.run(command, check=False).returncode != 0:
            print(f"failed: {name}")
            failed += 1
    print(f"together: {len(everything) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
