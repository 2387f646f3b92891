"""Adds 1 to the number in a file, many times: `counter.py URL FILE COUNT [LOG]`.

With `none` for a URL it takes no lock, and loses updates when several run at once. Appends each fencing token to LOG
while it holds the lock. Prints one line of JSON: how long each acquisition waited in milliseconds, and each token.
"""

import contextlib
import json
import pathlib
import sys
import time
from typing import TextIO

import polylock


def add_one(path: pathlib.Path) -> None:
    """Reads, takes a moment, writes back: wrong unless nobody else does so meanwhile."""
    with path.open("r+") as file:
        number = int(file.read())
        time.sleep(100e-6)
        file.seek(0)
        # As wide as before, so that one write replaces the whole number.
        file.write(f"{number + 1:010}\n")


def main(url: str, path: pathlib.Path, count: int, log: TextIO | None) -> None:
    """Runs it and prints the line."""
    waits: list[float] = []
    tokens: list[int] = []
    with contextlib.ExitStack() as stack:
        locks = None if url == "none" else stack.enter_context(polylock.connect(url))
        for _ in range(count):
            if locks is None:
                add_one(path)
                continue
            began = time.perf_counter()
            with locks.acquire("counter") as lease:
                waits.append((time.perf_counter() - began) * 1000)
                tokens.append(lease.fencing_token)
                if log:
                    log.write(f"{lease.fencing_token}\n")
                    log.flush()
                add_one(path)
    print(
        json.dumps(
            {
                "language": "python",
                "acquisitions": count,
                "wait_ms": waits,
                "tokens": tokens,
            }
        )
    )


if __name__ == "__main__":
    with contextlib.ExitStack() as files:
        log = files.enter_context(open(sys.argv[4], "a")) if sys.argv[4:] else None
        main(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), log)
