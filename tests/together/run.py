#!/usr/bin/env python3
"""What crosses languages: `run.py LANGUAGE=COMMAND…`, with the counters of all languages.

Needs the environment of with_servers.py.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def main(counters: list[str]) -> int:
    checks = {
        f"{len(counters)} languages on {scheme}": [str(HERE.parent / "demo" / "demo.py"), "--url", url, *counters]
        for scheme, url in (
            ("one Redis key", os.environ["POLYLOCK_TEST_REDIS"]),
            ("a Redis with a password", os.environ["POLYLOCK_TEST_REDIS_AUTH"]),
            ("file locks", os.environ["POLYLOCK_TEST_FILE"]),
        )
    }
    failed = 0
    for name, command in checks.items():
        print(f"\n-- {name}", flush=True)
        if subprocess.run(command, check=False).returncode != 0:
            print(f"{name}: failed")
            failed += 1
    print(f"together: {len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
