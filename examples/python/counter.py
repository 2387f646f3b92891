"""Adds 1 to the number in a file N times, under a lock or without: `counter.py URL_OR_"-" FILE N`.

Prints one line of JSON: how long each acquisition waited in milliseconds, and each fencing token in order.
"""

import contextlib
import json
import pathlib
import sys
import time

import polylock


def add_one(file: pathlib.Path) -> None:
    """Reads, sleeps a moment, writes back: an update is lost if two do that at once."""
    number = int(file.read_text() or 0)
    time.sleep(100e-6)
    file.write_text(str(number + 1))


def main(url: str, file: pathlib.Path, times: int) -> None:
    """Runs it and prints the line."""
    waits: list[float] = []
    tokens: list[int] = []
    with contextlib.ExitStack() as stack:
        locks = None if url == "-" else stack.enter_context(polylock.connect(url))
        for _ in range(times):
            if locks is None:
                add_one(file)
                continue
            began = time.perf_counter()
            with locks.acquire("demo:counter") as lease:
                waits.append((time.perf_counter() - began) * 1000)
                tokens.append(lease.fencing_token)
                add_one(file)
    print(json.dumps({"language": "Python", "acquisitions": times, "wait_ms": waits, "tokens": tokens}))


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]))
