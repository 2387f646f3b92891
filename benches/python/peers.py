"""The locks that are compared, behind one face: `acquire` waits and gives what `release` takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import aioredlock  # type: ignore[import-not-found]
import polylock
import polylock.asyncio
import pottery  # type: ignore[import-not-found]
import redis
import redis.asyncio
import redis_lock  # type: ignore[import-not-found]
import redlock  # type: ignore[import-not-found]

TTL = 30


class Blocking(NamedTuple):
    name: str
    acquire: Callable[[str], Any]
    release: Callable[[Any], object]


class Awaited(NamedTuple):
    name: str
    acquire: Callable[[str], Awaitable[Any]]
    release: Callable[[Any], Awaitable[object]]
    close: Callable[[], Awaitable[object]]


def blocking(urls: list[str]) -> list[Blocking]:
    """Ours and, after it, the peers that can use so many nodes."""
    locks = polylock.connect(urls)
    clients: list[Any] = [redis.Redis.from_url(url) for url in urls]
    ours = Blocking("polylock", lambda name: locks.acquire(name, ttl=TTL), lambda lease: lease.release())
    quorum = [_pottery(clients), _redlock_py(urls)]
    if len(urls) > 1:
        return [ours, *quorum]

    def redis_py(name: str) -> Any:
        lock = clients[0].lock(name, timeout=TTL)
        lock.acquire()
        return lock

    def python_redis_lock(name: str) -> Any:
        lock = redis_lock.Lock(clients[0], name, expire=TTL)
        lock.acquire()
        return lock

    return [
        ours,
        Blocking("redis-py Lock", redis_py, lambda lock: lock.release()),
        Blocking("python-redis-lock", python_redis_lock, lambda lock: lock.release()),
        *quorum,
    ]


def _pottery(clients: list[Any]) -> Blocking:
    def acquire(name: str) -> Any:
        lock = pottery.Redlock(key=name, masters=set(clients), auto_release_time=TTL)
        lock.acquire()
        return lock

    return Blocking("pottery Redlock", acquire, lambda lock: lock.release())


def _redlock_py(urls: list[str]) -> Blocking:
    locks = redlock.Redlock(urls)

    def acquire(name: str) -> Any:
        while True:
            lock = locks.lock(name, TTL * 1000)
            if lock:
                return lock

    return Blocking("redlock-py", acquire, locks.unlock)


def awaited(urls: list[str]) -> list[Awaited]:
    """The same for asyncio. To be called on the loop."""
    locks = polylock.asyncio.connect(urls)
    ours = Awaited("polylock", lambda name: locks.acquire(name, ttl=TTL), lambda lease: lease.release(), locks.close)
    clients: list[Any] = [redis.asyncio.Redis.from_url(url) for url in urls]

    async def close() -> None:
        for client in clients:
            await client.aclose()

    async def pottery_lock(name: str) -> Any:
        lock = pottery.AIORedlock(key=name, masters=set(clients), auto_release_time=TTL)
        await lock.acquire()
        return lock

    quorum = [Awaited("pottery AIORedlock", pottery_lock, lambda lock: lock.release(), close), _aioredlock(urls)]
    if len(urls) > 1:
        return [ours, *quorum]

    async def redis_py(name: str) -> Any:
        lock = clients[0].lock(name, timeout=TTL)
        await lock.acquire()
        return lock

    return [ours, Awaited("redis.asyncio Lock", redis_py, lambda lock: lock.release(), close), *quorum]


def _aioredlock(urls: list[str]) -> Awaited:
    locks = aioredlock.Aioredlock(urls, retry_count=10_000)

    async def acquire(name: str) -> Any:
        return await locks.lock(name, lock_timeout=TTL)

    return Awaited("aioredlock", acquire, locks.unlock, locks.destroy)
