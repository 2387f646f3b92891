#!/usr/bin/env python3
"""Four languages add to one number: first without a lock, then with one.

    demo.py [--url URL] [--count N] LANGUAGE=COMMAND…

Each COMMAND is run as `COMMAND URL FILE N LOG`, all at the same time; URL is `none` without a lock. It adds 1 to the
number in FILE N times, appends each fencing token to LOG while it holds the lock, and prints one line of JSON. Exits
with 1 if an update was lost, a token did not grow, or something is left behind.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
import urllib.parse
from dataclasses import dataclass

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "servers"))
from redis_server import RedisClient

NO_LOCK = "none"
# What the programs lock.
RESOURCE = "counter"
# A program that does not end within this many seconds hangs.
LIMIT = 300.0


class Failed(Exception):
    """The demo shows something that must not be."""


@dataclass
class Report:
    """What one program did."""

    language: str
    acquisitions: int
    wait_ms: list[float]
    tokens: list[int]


def run_all(programs: dict[str, list[str]], url: str, count: int, directory: pathlib.Path) -> list[Report]:
    """Runs the programs at the same time on a number that starts at 0."""
    number, log = directory / "number", directory / "tokens"
    # Of a fixed width, so that the programs can overwrite it in one write.
    number.write_text("0000000000\n")
    log.write_text("")
    running = {
        language: subprocess.Popen(
            [*command, url, str(number), str(count), str(log)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for language, command in programs.items()
    }
    reports = []
    try:
        for language, process in running.items():
            output, errors = process.communicate(timeout=LIMIT)
            if process.returncode != 0:
                raise Failed(f"the {language} program ended with {process.returncode}: {errors.strip()}")
            reports.append(Report(**json.loads(output) | {"language": language}))
    except subprocess.TimeoutExpired:
        raise Failed(f"a program did not end within {LIMIT:.0f} s") from None
    finally:
        for process in running.values():
            if process.poll() is None:
                process.kill()
                process.wait()
    return reports


def check(reports: list[Report], programs: dict[str, list[str]], count: int, directory: pathlib.Path) -> None:
    """Raises Failed if an update was lost or the tokens do not grow from each holder to the next."""
    number = int((directory / "number").read_text())
    expected = count * len(programs)
    if number != expected:
        raise Failed(f"the number is {number} instead of {expected}: {expected - number} updates were lost")
    for report in reports:
        if report.acquisitions != count or len(report.tokens) != count or len(report.wait_ms) != count:
            raise Failed(f"{report.language} did not report {count} acquisitions")
    # In the order in which they held the lock.
    holders = [int(line) for line in (directory / "tokens").read_text().split()]
    for before, after in itertools.pairwise(holders):
        if after <= before:
            raise Failed(f"token {after} came after {before}")
    if sorted(token for report in reports for token in report.tokens) != holders:
        raise Failed("the tokens that were reported are not those of the holders")


def table(reports: list[Report]) -> str:
    rows = [("language", "acquisitions", "wait p50 ms", "wait p99 ms", "first token", "last token")]
    for report in reports:
        tokens = [str(report.tokens[0]), str(report.tokens[-1])]
        waits = [f"{percentile(report.wait_ms, part):.2f}" for part in (0.50, 0.99)]
        rows.append((report.language, str(report.acquisitions), waits[0], waits[1], tokens[0], tokens[1]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def keys_of_ours(urls: str) -> set[str]:
    """The keys that have to do with the resource, on one Redis or each of several; none for other URLs."""
    keys = set[str]()
    for url in urls.split(","):
        if urllib.parse.urlsplit(url).scheme == "redis":
            keys |= keys_on(url)
    return keys


def keys_on(url: str) -> set[str]:
    client = RedisClient(url)
    try:
        keys, cursor = set[str](), b"0"
        while True:
            reply = client.command("SCAN", cursor, "MATCH", f"*{RESOURCE}*", "COUNT", 1000)
            assert isinstance(reply, list) and isinstance(reply[0], bytes) and isinstance(reply[1], list)
            keys |= {key.decode(errors="replace") for key in reply[1] if isinstance(key, bytes)}
            cursor = reply[0]
            if cursor == b"0":
                return keys
    finally:
        client.close()


def demo(programs: dict[str, list[str]], url: str | None, count: int, directory: pathlib.Path) -> None:
    total = count * len(programs)
    names = ", ".join(programs)
    print(f"{len(programs)} programs ({names}) add 1 to a number in a file, {count:,} times each, at the same time.\n")
    run_all(programs, NO_LOCK, count, directory)
    number = int((directory / "number").read_text())
    print(f"Without a lock: {number:,} instead of {total:,}; {total - number:,} updates were lost.\n")
    locks = directory / "locks"
    locks.mkdir()
    url = url or f"file://{locks}"
    shown = "Redlock" if "," in url else f"{urllib.parse.urlsplit(url).scheme}: locks"
    before = keys_of_ours(url)
    if RESOURCE in before:
        raise Failed(f"the key {RESOURCE!r} is in use already")
    reports = run_all(programs, url, count, directory)
    print(f"With {shown}:\n\n{table(reports)}\n")
    check(reports, programs, count, directory)
    left = {key for key in keys_of_ours(url) - before if not key.startswith("polylock:fence:")}
    if left:
        raise Failed(f"keys are left behind: {', '.join(sorted(left))}")
    print(f"The number is {total:,}: no update lost, tokens strictly grow.")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("programs", nargs="+", metavar="LANGUAGE=COMMAND")
    arguments = parser.parse_args()
    programs = {name: shlex.split(command) for name, _, command in (word.partition("=") for word in arguments.programs)}
    with tempfile.TemporaryDirectory(prefix="polylock-demo-") as directory:
        try:
            demo(programs, arguments.url, arguments.count, pathlib.Path(directory))
        except (Failed, OSError) as error:
            print(f"FAILED: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
