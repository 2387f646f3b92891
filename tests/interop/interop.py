#!/usr/bin/env python3
"""Other libraries for Python and ours on the same keys: neither gets in while the other holds, each gets in after.

Needs polylock and the packages of requirements.txt, and the environment of with_servers.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import polylock
import pottery  # type: ignore[import-not-found,unused-ignore]
import redis
import redis.asyncio
import redis_lock  # type: ignore[import-not-found,unused-ignore]

ONE = [os.environ["POLYLOCK_TEST_REDIS"]]
FIVE = os.environ["POLYLOCK_TEST_REDLOCK"].split(",")
TTL = 20.0

Release = Callable[[], object]
# Takes a name, seconds, and whether to wait; answers what releases it, or None if somebody else holds.
Hold = Callable[..., "Release | None"]


def redis_py(clients: list[Any]) -> Hold:
    def hold(name: str, ttl: float, waits: bool = False) -> Release | None:
        lock = clients[0].lock(name, timeout=ttl, blocking=waits)
        return lock.release if lock.acquire() else None

    return hold


def redis_asyncio(clients: list[Any]) -> Hold:
    options = clients[0].connection_pool.connection_kwargs
    loop = asyncio.new_event_loop()
    client = redis.asyncio.Redis(host=options["host"], port=options["port"])

    def hold(name: str, ttl: float, waits: bool = False) -> Release | None:
        lock = client.lock(name, timeout=ttl, blocking=waits)
        return (lambda: loop.run_until_complete(lock.release())) if loop.run_until_complete(lock.acquire()) else None

    return hold


def python_redis_lock(clients: list[Any]) -> Hold:
    def hold(name: str, ttl: float, waits: bool = False) -> Release | None:
        # It counts whole seconds.
        lock = redis_lock.Lock(clients[0], name, expire=max(1, round(ttl)))
        return lock.release if lock.acquire(blocking=waits) else None

    return hold


def of_pottery(clients: list[Any]) -> Hold:
    def hold(name: str, ttl: float, waits: bool = False) -> Release | None:
        lock = pottery.Redlock(key=name, masters=set(clients), auto_release_time=ttl)
        return lock.release if lock.acquire(blocking=waits) else None

    return hold


# How each is called, its library, what it puts before a name, and the servers that it is for.
PEERS = [
    ("redis-py", redis_py, "", [ONE]),
    ("redis.asyncio", redis_asyncio, "", [ONE]),
    ("python-redis-lock", python_redis_lock, "lock:", [ONE]),
    ("pottery", of_pottery, "redlock:", [ONE, FIVE]),
]


def theirs_keeps_ours_out(locks: polylock.LockManager, hold: Hold, name: str) -> None:
    release = hold(name, TTL)
    assert release is not None, "theirs was not granted"
    assert locks.try_acquire(name, ttl=TTL) is None, "two hold it"
    release()
    lease = locks.try_acquire(name, ttl=TTL)
    assert lease is not None, "not free after theirs"
    lease.release()


def ours_keeps_theirs_out(locks: polylock.LockManager, hold: Hold, name: str) -> None:
    lease = locks.acquire(name, ttl=TTL)
    assert hold(name, TTL) is None, "two hold it"
    lease.extend()
    assert hold(name, TTL) is None, "two hold it, after an extension"
    assert lease.is_held, "theirs took ours away"
    assert lease.release() == "released", "theirs took ours away"
    release = hold(name, TTL)
    assert release is not None, "not free after ours"
    release()


def ours_waits_for_theirs(locks: polylock.LockManager, hold: Hold, name: str) -> None:
    release = hold(name, TTL)
    assert release is not None, "theirs was not granted"
    waiting = threading.Thread(target=lambda: locks.acquire(name, ttl=TTL, wait=30).release())
    waiting.start()
    while locks.waiting(name) == 0:
        time.sleep(0.001)
    release()
    waiting.join(60)
    assert not waiting.is_alive(), "ours waits for ever"


def theirs_waits_for_ours(locks: polylock.LockManager, hold: Hold, name: str) -> None:
    lease = locks.acquire(name, ttl=TTL)
    released = threading.Event()

    def wait() -> None:
        release = hold(name, TTL, waits=True)
        assert release is not None
        release()
        released.set()

    threading.Thread(target=wait, daemon=True).start()
    # Most of them ask again and again; one blocks on a list until it is told.
    assert not released.wait(0.3), "two hold it"
    lease.release()
    assert released.wait(TTL / 2), "theirs waits for its ttl"


def ours_comes_after_theirs_has_expired(locks: polylock.LockManager, hold: Hold, name: str) -> None:
    began = time.monotonic()
    assert hold(name, 1.0) is not None, "theirs was not granted"
    lease = locks.acquire(name, ttl=TTL, wait=30)
    assert time.monotonic() - began >= 1.0, "ours came before theirs had expired"
    lease.release()


def theirs_comes_after_ours_has_expired(locks: polylock.LockManager, hold: Hold, name: str) -> None:
    lease = locks.acquire(name, ttl=0.5, auto_extend=False)
    while (release := hold(name, TTL)) is None:
        pass
    assert not lease.is_held, "two hold it"
    release()


CASES = [
    theirs_keeps_ours_out,
    ours_keeps_theirs_out,
    ours_waits_for_theirs,
    theirs_waits_for_ours,
    ours_comes_after_theirs_has_expired,
    theirs_comes_after_ours_has_expired,
]


def main() -> int:
    # Pottery's and ours, of leases that are let lapse on purpose.
    warnings.simplefilter("ignore")
    logging.disable()
    passed = failed = 0
    for peer, library, prefix, places in PEERS:
        for urls in places:
            clients = [redis.Redis.from_url(url) for url in urls]
            with polylock.connect(urls, prefix=prefix) as locks:
                for case in CASES:
                    name = f"interop:{os.getpid()}:{passed + failed}"
                    try:
                        case(locks, library(clients), name)
                        passed += 1
                    except Exception:
                        failed += 1
                        print(f"failed: {peer}, {len(urls)} servers: {case.__name__}: {traceback.format_exc()}")
    print(f"interop in Python: {passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
