"""anyio on asyncio, whose cancel scopes cancel again and again, and trio, which gets a clear error."""

from __future__ import annotations

import threading

import anyio
import anyio.abc
import anyio.to_thread
import pytest
import trio

import polylock
import polylock.asyncio
from conftest import assert_free


def test_task_groups_and_cancel_scopes(url: str, name: str) -> None:
    inside: list[int] = []

    async def main() -> None:
        async with polylock.asyncio.connect(url) as locks:

            async def work() -> None:
                async with locks.lock(name, ttl=10, wait=60) as lease:
                    inside.append(lease.fencing_token)
                    await anyio.sleep(0)

            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(work)
            async with locks.lock(name, ttl=10):
                for _ in range(5):
                    with anyio.move_on_after(0.02) as scope:
                        await locks.acquire(name)
                    assert scope.cancelled_caught
                with pytest.raises(TimeoutError), anyio.fail_after(0.02):
                    async with locks.lock(name):
                        pass
            # The body is cancelled, and so is every await at the end of it: the lease is released all the same.
            with anyio.move_on_after(0.02) as scope:
                async with locks.lock(name, ttl=10):
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
            async with locks.lock(name, ttl=10, wait=60):
                pass

    anyio.run(main, backend="asyncio")
    assert inside == sorted(set(inside))
    assert len(inside) == 20
    assert_free(url, name)


def test_an_error_in_a_task_group_releases_what_its_tasks_hold(url: str, name: str) -> None:
    async def hold(locks: polylock.asyncio.LockManager, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with locks.lock(name, ttl=10):
            task_status.started()
            await anyio.sleep_forever()

    async def main() -> None:
        locks = polylock.asyncio.connect(url)
        async with anyio.create_task_group() as group:
            await group.start(lambda *, task_status: hold(locks, task_status))
            raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        anyio.run(main, backend="asyncio")
    assert_free(url, name)


def test_trio_gets_a_clear_error_and_can_use_the_blocking_half(memory: str) -> None:
    locks, loops = polylock.connect(memory), polylock.asyncio.connect(memory)
    threads: list[int] = []

    def work() -> None:
        with locks.lock("r", ttl=10):
            threads.append(threading.get_ident())

    async def main() -> None:
        for use in (loops.acquire, loops.try_acquire, loops.inspect):
            with pytest.raises(polylock.Unsupported, match=r"trio\.to_thread\.run_sync"):
                await use("r")
        with pytest.raises(polylock.Unsupported):
            async with loops.lock("r"):
                pass
        await anyio.to_thread.run_sync(work)

    anyio.run(main, backend="trio")
    trio.run(main)
    assert len(threads) == 2
    assert threading.get_ident() not in threads
