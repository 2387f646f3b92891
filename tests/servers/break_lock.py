#!/usr/bin/env python3
"""Deletes a lock behind the library's back: `break_lock.py NAME`.

Looks on every store that the environment of with_servers.py names, because the scenarios' names are unique. Exits with
1 if the lock was on none: then a test would wait for the loss of a lease that nobody harmed.
"""

from __future__ import annotations

import os
import pathlib
import sys
import urllib.parse

from postgres_server import run_sql
from redis_server import RedisClient
from zookeeper_server import ZookeeperClient, directory_of


def break_in_redis(url: str, name: str) -> int:
    """Deletes the key; what counts the fencing tokens stays, as after an eviction or a DEL by hand."""
    client = RedisClient(url)
    deleted = client.command("DEL", name)
    client.close()
    return deleted if isinstance(deleted, int) else 0


def break_in_directory(url: str, name: str) -> int:
    """Removes the resource's file: a later holder would lock another one."""
    directory = pathlib.Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    found = 0
    for file in directory.rglob("*"):
        if file.is_file() and name.encode() in file.read_bytes():
            file.unlink()
            found += 1
    return found


def break_in_postgres(url: str, name: str) -> int:
    """Deletes the row, and with it the counter: a new one counts on from the server's clock. Or ends the session."""
    url, _, options = url.partition("?")
    if options == "mode=session":
        return break_session(url, name)
    if run_sql(url, "SELECT to_regclass('polylock_lease')") == "":
        return 0
    return len(run_sql(url, "DELETE FROM polylock_lease WHERE key = :'name' RETURNING 1", name=name).split())


def break_session(url: str, name: str) -> int:
    if run_sql(url, "SELECT to_regclass('polylock_session')") == "":
        return 0
    end = "SELECT pg_terminate_backend(backend) FROM polylock_session WHERE key = :'name'"
    return run_sql(url, end, name=name).split().count("t")


def break_in_zookeeper(url: str, name: str) -> int:
    """Deletes who holds or wants it."""
    client = ZookeeperClient(url)
    directory = directory_of(client.root, name) + "/"
    found = [contender for contender in client.contenders() if contender.startswith(directory)]
    for contender in found:
        client.delete(contender)
    client.close()
    return len(found)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    name, broken = sys.argv[1], 0
    for url in os.environ["POLYLOCK_TEST_URLS"].split():
        if url.startswith("redis:"):
            # One URL, or Redlock's list.
            broken += sum(break_in_redis(node, name) for node in url.split(","))
        elif url.startswith("file:"):
            broken += break_in_directory(url, name)
        elif url.startswith("zookeeper:"):
            broken += break_in_zookeeper(url, name)
        elif url.startswith("postgres:"):
            broken += break_in_postgres(url, name)
    return 0 if broken else 1


if __name__ == "__main__":
    sys.exit(main())
