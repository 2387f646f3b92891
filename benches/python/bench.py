"""polylock and redis-py's Lock on one Redis, side by side: `bench.py URL`. Prints a line of JSON per comparison."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import polylock
import polylock.asyncio
import redis
import redis.asyncio
from floor import Floor

ROUNDS = 60
PAIRS = 25
WARM_UP = 5
IN_FLIGHT = 64


def row(what: str, unit: str, ours: float, peer: float, name: str, language: str = "python") -> None:
    print(json.dumps({"language": language, "what": what, "unit": unit, "ours": ours, "peer": peer, "peer_name": name}))


def interleaved(contenders: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The median time of each in microseconds. They take turns, so that all see the same machine."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(WARM_UP + ROUNDS):
        for name, pair in contenders.items():
            for _ in range(PAIRS):
                began = time.perf_counter()
                pair()
                if turn >= WARM_UP:
                    samples[name].append((time.perf_counter() - began) * 1e6)
    return {name: statistics.median(times) for name, times in samples.items()}


def blocking(url: str) -> None:
    locks = polylock.connect(url)
    peer = redis.Redis.from_url(url)

    def ours() -> None:
        locks.acquire("bench:ours", ttl=30).release()

    def theirs() -> None:
        lock = peer.lock("bench:peer", timeout=30)
        lock.acquire()
        lock.release()

    medians = interleaved({"ours": ours, "theirs": theirs, "floor": Floor(url, "bench:floor").pair})
    row("acquire + release", "us", medians["ours"], medians["theirs"], "redis-py Lock")
    row("acquire + release", "us", medians["ours"], medians["floor"], "raw socket")
    locks.close()
    peer.close()


async def on_a_loop(url: str) -> None:
    locks = polylock.asyncio.connect(url)
    peer = redis.asyncio.Redis.from_url(url)
    floor = Floor(url, "bench:floor")

    async def ours(name: str = "bench:ours") -> None:
        lease = await locks.acquire(name, ttl=30)
        await lease.release()

    async def theirs(name: str = "bench:peer") -> None:
        lock = peer.lock(name, timeout=30)
        await lock.acquire()
        await lock.release()

    async def raw() -> None:
        floor.pair()

    contenders: dict[str, Callable[[], Awaitable[None]]] = {"ours": ours, "theirs": theirs, "floor": raw}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(WARM_UP + ROUNDS):
        for name, pair in contenders.items():
            for _ in range(PAIRS):
                began = time.perf_counter()
                await pair()
                if turn >= WARM_UP:
                    samples[name].append((time.perf_counter() - began) * 1e6)
    medians = {name: statistics.median(times) for name, times in samples.items()}
    row("acquire + release, asyncio", "us", medians["ours"], medians["theirs"], "redis.asyncio Lock")
    row("acquire + release, asyncio", "us", medians["ours"], medians["floor"], "raw socket")

    async def many(pair: Callable[[str], Awaitable[None]]) -> float:
        """Pairs per second with 64 in flight."""

        async def worker(number: int) -> None:
            for _ in range(PAIRS):
                await pair(f"bench:{number}")

        began = time.perf_counter()
        await asyncio.gather(*(worker(number) for number in range(IN_FLIGHT)))
        return IN_FLIGHT * PAIRS / (time.perf_counter() - began)

    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(7):
        rates["ours"].append(await many(ours))
        rates["theirs"].append(await many(theirs))
    fast, slow = statistics.median(rates["ours"]), statistics.median(rates["theirs"])
    row(f"{IN_FLIGHT} in flight, asyncio", "pairs/s", fast, slow, "redis.asyncio Lock")
    await locks.close()
    await peer.aclose()


if __name__ == "__main__":
    blocking(sys.argv[1])
    asyncio.run(on_a_loop(sys.argv[1]))
