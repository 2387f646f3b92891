#!/usr/bin/env python3
"""Runs a command with real servers: `with_servers.py CMD…`.

Starts Redis, PostgreSQL and ZooKeeper on free loopback ports, makes a directory for file locks, tells the command by
its environment where they are, stops everything when it is over, and exits with the command's status.

    POLYLOCK_TEST_REDIS       redis://127.0.0.1:PORT
    POLYLOCK_TEST_REDIS_AUTH  redis://:PASSWORD@127.0.0.1:PORT
    POLYLOCK_TEST_REDLOCK     five of them: URL,URL,URL,URL,URL
    POLYLOCK_TEST_FILE        file:///DIRECTORY
    POLYLOCK_TEST_POSTGRES    postgres://app:PASSWORD@127.0.0.1:PORT/app
    POLYLOCK_TEST_PGBOUNCER   the same database through a pooler that gives each transaction another session
    POLYLOCK_TEST_ZOOKEEPER   zookeeper://127.0.0.1:PORT/polylock
    POLYLOCK_TEST_URLS        what scenarios run on: memory: and all others but PgBouncer, separated by spaces
    POLYLOCK_TEST_BREAK       a program; `PROGRAM NAME` deletes the lock of that name behind the library's back
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import tempfile
from types import FrameType

from postgres_server import PgBouncer, PostgresServer
from redis_server import RedisServer
from zookeeper_server import ZookeeperServer

HERE = pathlib.Path(__file__).resolve().parent
REDLOCK_NODES = 5
# How long an interrupted command may take to clean up before it is killed, in seconds.
GRACE = 10.0


class Interrupted(Exception):
    """A signal asks us to stop."""

    def __init__(self, number: int) -> None:
        self.number = number


def start(stack: contextlib.ExitStack) -> dict[str, str]:
    """Starts the servers, to be stopped by `stack`; returns what to add to the environment."""
    # The slowest to start goes first, and is waited for last.
    zookeeper = stack.enter_context(ZookeeperServer())
    redis = stack.enter_context(RedisServer())
    auth = stack.enter_context(RedisServer(password=secrets.token_hex(8)))
    redlock = [stack.enter_context(RedisServer()) for _ in range(REDLOCK_NODES)]
    postgres = stack.enter_context(PostgresServer())
    pgbouncer = stack.enter_context(PgBouncer(postgres))
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="polylock-locks-"))
    nodes = ",".join(node.url for node in redlock)
    urls = ["memory:", f"file://{directory}", redis.url, nodes, postgres.url, f"{postgres.url}?mode=session"]
    urls.append(zookeeper.url)
    return {
        "POLYLOCK_TEST_REDIS": redis.url,
        "POLYLOCK_TEST_REDIS_AUTH": auth.url,
        "POLYLOCK_TEST_REDLOCK": nodes,
        "POLYLOCK_TEST_FILE": f"file://{directory}",
        "POLYLOCK_TEST_ZOOKEEPER": zookeeper.ready().url,
        "POLYLOCK_TEST_POSTGRES": postgres.url,
        "POLYLOCK_TEST_PGBOUNCER": pgbouncer.url,
        "POLYLOCK_TEST_URLS": " ".join(urls),
        "POLYLOCK_TEST_BREAK": str(HERE / "break_lock.py"),
    }


def run(command: list[str], environment: dict[str, str]) -> int:
    """The command's status, as a shell would give it. Nothing of its process group is left afterwards."""
    process = subprocess.Popen(command, env=os.environ | environment, start_new_session=True)
    try:
        status = process.wait()
    except Interrupted as interrupted:
        signal_group(process.pid, interrupted.number)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            print(f"with_servers: {command[0]} did not stop within {GRACE:.0f} s", file=sys.stderr)
        status = -interrupted.number
    finally:
        signal_group(process.pid, signal.SIGKILL)
        process.wait()
    return status if status >= 0 else 128 - status


def signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def interrupt(number: int, _: FrameType | None) -> None:
    # The first one counts: cleaning up is not to be interrupted.
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Interrupted(number)


def main(command: list[str]) -> int:
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        with contextlib.ExitStack() as stack:
            return run(command, start(stack))
    except Interrupted as interrupted:
        return 128 + interrupted.number
    except FileNotFoundError as error:
        print(f"with_servers: {error.filename}: not found", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
