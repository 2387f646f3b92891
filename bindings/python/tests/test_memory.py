"""Memory stays flat, whatever is done again and again."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable

import polylock
import polylock.asyncio
from conftest import unique

PAIRS = int(os.environ.get("POLYLOCK_TEST_PAIRS", "0"))
CANCELLED = int(os.environ.get("POLYLOCK_TEST_CANCELLED", "2000"))
MOST = 6 * 1024  # KiB; what the allocators may keep for themselves


def resident() -> int:
    """What this process occupies, in KiB."""
    gc.collect()
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def stays_flat(work: Callable[[int], None], times: int) -> None:
    work(times // 5)  # what is allocated once
    before = resident()
    work(times)
    assert resident() - before < MOST


def pairs_on(url: str) -> int:
    return PAIRS or (20_000 if url.startswith("memory:") else 500)


def test_pairs(url: str) -> None:
    with polylock.connect(url) as locks:

        def work(times: int) -> None:
            for number in range(times):
                with locks.lock(f"{number % 100}", ttl=10):
                    pass

        stays_flat(work, pairs_on(url))


def test_leases_that_are_released_by_themselves_are_let_go(memory: str) -> None:
    async def main() -> None:
        lock = polylock.asyncio.connect(memory).lock("r")
        for _ in range(20):
            lease = await lock.acquire()
            await lease.release()
        assert len(lock._held) == 1
        async with lock as outer:
            assert await lock.release() is polylock.Released.RELEASED
            assert not outer.is_held

    asyncio.run(main())
    lock = polylock.connect(memory).lock("r")
    for _ in range(20):
        lock.acquire().release()
    assert len(lock._held) == 1


def test_asyncio_pairs_and_listeners(url: str) -> None:
    locks = polylock.asyncio.connect(url)
    name = unique()

    async def pairs(times: int) -> None:
        for number in range(times):
            async with locks.lock(f"{name}:{number % 100}", ttl=10) as lease:
                lease.on_lost(print)

    stays_flat(lambda times: asyncio.run(pairs(times)), pairs_on(url))


def test_cancelled_acquires(url: str) -> None:
    locks = polylock.asyncio.connect(url)
    name = unique()

    async def cancelled(times: int) -> None:
        async with locks.lock(name, ttl=60):
            for _ in range(times // 20):
                tasks = [asyncio.create_task(locks.acquire(name)) for _ in range(20)]
                await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            assert locks.waiting(name) == 0

    stays_flat(lambda times: asyncio.run(cancelled(times)), CANCELLED)


def test_managers(url: str) -> None:
    def work(times: int) -> None:
        for _ in range(times):
            with polylock.connect(url) as locks, locks.lock(unique()):
                pass

    stays_flat(work, 120)
