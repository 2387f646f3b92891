"""The asyncio API, beyond what the scenarios say: cancellation, loops, and what a loop leaves behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import random
import re
import select
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop
from redis_server import RedisServer

import polylock
import polylock.asyncio
from conftest import assert_free, wait_until
from polylock.asyncio._bridge import Bridge, bridge

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


def run_on(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, Any]) -> Any:
    """As `asyncio.Runner`, which Python 3.10 does not have yet."""
    try:
        return loop.run_until_complete(main)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@pytest.fixture(params=LOOPS, ids=["selector", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """`asyncio.run` on each kind of loop."""

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        return run_on(request.param(), main)

    return run


Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_with_gives_the_lease_and_releases_it(url: str, name: str, run: Run) -> None:
    async def main() -> None:
        async with (
            polylock.asyncio.connect(url) as locks,
            locks.lock(name, ttl=5, wait=5, label="night shift") as lease,
        ):
            assert (lease.resource, lease.is_held, lease.lost, lease.loss) == (name, True, False, None)
            holder = await locks.inspect(name)
            assert holder is not None
            assert (holder.owner, holder.label) == (lease.owner_token, "night shift")
            assert await locks.try_acquire(name) is None
            with pytest.raises(polylock.AcquireTimeout):
                await locks.acquire(name, wait=0.05)
            await lease.extend(20)
            assert 10 < lease.remaining <= 20
            second = locks.lock(name)
            assert await second.try_acquire() is None
            assert await second.release() is polylock.Released.NOT_HELD

    run(main())
    assert_free(url, name)


def test_the_error_of_the_body_is_never_masked(url: str, name: str, run: Run) -> None:
    async def main() -> None:
        locks = polylock.asyncio.connect(url)
        with pytest.raises(ZeroDivisionError):
            async with locks.lock(name, ttl=0.3, auto_extend=False) as lease:
                await until(lambda: lease.lost)
                raise ZeroDivisionError
        with pytest.raises(polylock.LockLost, match="deadline"):
            async with locks.lock(name, ttl=0.3, auto_extend=False) as lease:
                await until(lambda: lease.lost)

    run(main())


def test_a_loss_is_told_in_the_words_of_blocking_code(memory: str, run: Run) -> None:
    name, blocking = "r", polylock.connect(memory)

    async def main() -> None:
        locks = polylock.asyncio.connect(memory)
        hows: list[dict[str, Any]] = [{"ttl": 0.1, "auto_extend": False}, {"ttl": 0.1, "max_hold": 0.01}, {}]
        for how in hows:
            with pytest.raises(polylock.LockLost) as expected, blocking.lock(name, **how) as lease:
                if not how:
                    blocking.break_(name, lease.fencing_token)
                await until(lambda: lease.lost)
            with pytest.raises(polylock.LockLost) as caught:
                async with locks.lock(name, **how) as lease:
                    if not how:
                        blocking.break_(name, lease.fencing_token)
                    await until(lambda: lease.lost)
            assert str(caught.value) == str(expected.value)
            assert caught.value.resource == expected.value.resource == name

    run(main())


def test_who_did_not_enter_cannot_leave(memory: str, run: Run) -> None:
    async def main() -> None:
        async with polylock.asyncio.connect(memory) as locks:
            lock = locks.shared("r")
            await lock.acquire()
            with pytest.raises(RuntimeError, match="not entered by this task"):
                await lock.__aexit__(None, None, None)
            await asyncio.gather(lock.__aenter__(), lock.__aenter__())
            with pytest.raises(RuntimeError, match="not by one other alone"):
                await lock.__aexit__(None, None, None)
            await lock.__aexit__(ValueError, ValueError(), None)

    run(main())


async def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        await asyncio.sleep(0.005)


def test_many_tasks_take_turns(url: str, name: str, run: Run) -> None:
    inside, tokens = 0, list[int]()

    async def main() -> None:
        locks = polylock.asyncio.connect(url)
        lock = locks.lock(name, ttl=10, wait=60)

        async def work() -> None:
            nonlocal inside
            async with lock as lease:
                inside += 1
                assert inside == 1
                tokens.append(lease.fencing_token)
                await asyncio.sleep(0)
                inside -= 1

        await asyncio.gather(*(work() for _ in range(64)))

    run(main())
    assert len(tokens) == 64
    assert tokens == sorted(set(tokens))


def test_a_blocked_loop_does_not_lose_the_lease(url: str, name: str, run: Run) -> None:
    async def main() -> None:
        async with polylock.asyncio.connect(url) as locks, locks.lock(name, ttl=1) as lease:
            time.sleep(3.1)
            assert lease.is_held
            holder = await locks.inspect(name)
            assert holder is not None
            assert holder.owner == lease.owner_token

    run(main())


def test_listeners_are_called_on_the_loop_in_their_context(url: str, name: str, run: Run) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def main() -> None:
        locks = polylock.asyncio.connect(url)
        lease = await locks.acquire(name, ttl=0.3, auto_extend=False)
        told: list[object] = []
        failures: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: failures.append(context))
        variable.set("mine")
        lease.on_lost(lambda _: 1 / 0)
        lease.on_lost(lambda reason: told.append((reason, threading.get_ident(), variable.get())))
        variable.set("other")
        await until(lambda: bool(told))
        assert told == [("expired", threading.get_ident(), "mine")]
        assert isinstance(failures[0]["exception"], ZeroDivisionError)

    run(main())


def test_cancelled_at_any_step_leaves_nothing(url: str, name: str) -> None:
    """Steps the loop by hand, and cancels after a random number of steps, while another holds the lock or not."""
    loop = asyncio.new_event_loop()
    locks = polylock.asyncio.connect(url)
    rng = random.Random(7)
    won = cancelled = 0

    def step() -> None:
        loop.call_soon(loop.stop)
        loop.run_forever()

    async def attempt() -> None:
        async with locks.lock(name, ttl=30):
            await asyncio.sleep(0)

    for schedule in range(1000):
        holder = None if schedule % 2 else loop.run_until_complete(locks.acquire(name, ttl=30))
        release = rng.randrange(8)
        task = loop.create_task(attempt())
        for number in range(rng.randrange(25)):
            if holder is not None and number == release:
                loop.run_until_complete(holder.release())
                holder = None
            step()
            if rng.random() < 0.3:
                time.sleep(rng.random() * 0.0003)
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        if task.cancelled():
            cancelled += 1
        else:
            assert task.exception() is None
            won += 1
        if holder is not None:
            loop.run_until_complete(holder.release())
    assert won > 20, "it was always cancelled"
    assert cancelled > 20, "it was never cancelled"
    # The manager still works, and nothing of it is left.
    last = loop.run_until_complete(locks.acquire(name, wait=30))
    assert loop.run_until_complete(last.release()) is polylock.Released.RELEASED
    loop.run_until_complete(locks.close())
    loop.close()
    assert_free(url, name)


@pytest.mark.parametrize("window", ["finished, not handed out", "handed out, not awaited"])
def test_a_result_that_nobody_awaits_is_given_back(url: str, name: str, window: str) -> None:
    async def main() -> None:
        locks = polylock.asyncio.connect(url)
        # Of no loop: one that ran for its release could hand out the result that this is about.
        holder = polylock.connect(url).acquire(name, ttl=30)
        task = asyncio.create_task(locks.acquire(name, ttl=30))
        await until(lambda: locks.waiting(name) == 1)
        on = bridge()
        holder.release()
        while on._futures and not task.done():
            # What the loop would do, step by step, without running any task.
            select.select([on.queue.fileno()], [], [], 0.01)
            if window == "handed out, not awaited":
                on._turn()
                continue
            results = on.queue.turn()
            if results:
                # The task is cancelled while its result is on the way from the queue to its future.
                task.cancel()
                hand_out(on, results)
                break
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())
    assert_free(url, name)


def hand_out(on: Bridge, results: list[tuple[int, object]]) -> None:
    class Handed:
        gather = flush = staticmethod(lambda: None)

        def turn(self) -> list[tuple[int, object]]:
            return results

    queue, on.queue = on.queue, Handed()  # type: ignore[assignment]
    try:
        on._turn()
    finally:
        on.queue = queue


def test_cancelling_a_release_does_not_stop_it(url: str, name: str, run: Run) -> None:
    async def main() -> None:
        locks = polylock.asyncio.connect(url)
        for steps in range(1, 7):
            lease = await locks.acquire(name, ttl=30, wait=20)
            task = asyncio.create_task(lease.release())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert not lease.is_held

    run(main())
    assert_free(url, name)


def test_timeouts_of_asyncio_work(url: str, name: str, run: Run) -> None:
    async def main() -> None:
        locks = polylock.asyncio.connect(url)
        async with locks.lock(name):
            for _ in range(3):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(locks.acquire(name), 0.05)
            assert locks.waiting(name) == 0

    run(main())
    assert_free(url, name)


def test_several_loops_in_several_threads_share_a_manager(url: str, name: str) -> None:
    locks = polylock.asyncio.connect(url)
    tokens: list[int] = []

    async def main() -> None:
        for _ in range(20):
            async with locks.lock(name, ttl=10, wait=60) as lease:
                tokens.append(lease.fencing_token)
                await asyncio.sleep(0)

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 80
    assert tokens == sorted(set(tokens))


def test_a_blocked_loop_does_not_hold_up_the_others_in_line(url: str, name: str) -> None:
    locks = polylock.asyncio.connect(url)
    blocked, goes_on = threading.Event(), threading.Event()

    async def stand_still() -> None:
        waiter = asyncio.create_task(locks.acquire(name))
        # What it has asked is answered: else it might be granted yet.
        while re.search(r'answer="busy"} [1-9]', locks.metrics_text()) is None:
            await asyncio.sleep(0.001)
        blocked.set()
        goes_on.wait()
        await (await waiter).release()

    async def main() -> float:
        holder = await locks.acquire(name)
        thread.start()
        blocked.wait()
        waiter = asyncio.create_task(locks.acquire(name, wait=20))
        await asyncio.sleep(0)
        await holder.release()
        released = time.monotonic()
        await (await waiter).release()
        return time.monotonic() - released

    thread = threading.Thread(target=asyncio.run, args=(stand_still(),))
    try:
        assert asyncio.run(main()) < 6
        assert locks.waiting(name) == 1
    finally:
        goes_on.set()
        thread.join()
    assert locks.waiting(name) == 0


def test_the_next_task_with_the_same_id_releases_nothing(memory: str, run: Run) -> None:
    lock = polylock.asyncio.connect(memory).lock("r")

    async def acquire() -> tuple[int, polylock.asyncio.Lease]:
        return id(asyncio.current_task()), await lock.acquire()

    async def release() -> int:
        assert await lock.release() is polylock.Released.NOT_HELD
        return id(asyncio.current_task())

    async def main() -> None:
        number, lease = await asyncio.create_task(acquire())
        for _ in range(1000):
            if await asyncio.create_task(release()) == number:
                break
        else:
            raise AssertionError("no id was used twice")
        assert await lease.release() is polylock.Released.RELEASED

    run(main())


def test_a_with_may_be_left_by_another_task_than_entered_it(url: str, name: str, run: Run) -> None:
    """As fixtures are whose halves run in tasks of their own."""

    async def main() -> None:
        locks = polylock.asyncio.connect(url)
        lock = locks.lock(name)

        async def fixture() -> AsyncIterator[polylock.asyncio.Lease]:
            async with lock as lease:
                yield lease

        async def step(generator: AsyncIterator[polylock.asyncio.Lease]) -> polylock.asyncio.Lease | None:
            return await anext(generator, None)

        generator = fixture()
        lease = await asyncio.create_task(step(generator))
        gc.collect()
        assert lease is not None
        assert lease.is_held
        assert await asyncio.create_task(step(generator)) is None
        assert not lease.is_held

    run(main())
    assert_free(url, name)


@pytest.mark.parametrize("factory", LOOPS, ids=["selector", "uvloop"])
@pytest.mark.parametrize("shut", [True, False], ids=["run", "bare"])
def test_a_closed_loop_releases_its_leases_and_ends_its_waits(
    url: str, name: str, factory: Callable[[], asyncio.AbstractEventLoop], shut: bool
) -> None:
    locks = polylock.asyncio.connect(url)
    loop = factory()
    lease = loop.run_until_complete(locks.acquire(name, ttl=60))
    waiter = loop.create_task(locks.acquire(name))
    loop.run_until_complete(asyncio.sleep(0.02))
    assert locks.waiting(name) == 1
    if shut:
        waiter.cancel()
        loop.run_until_complete(asyncio.wait([waiter]))
    loop.close()
    wait_until(lambda: not lease.is_held)
    assert locks.waiting(name) == 0
    assert not lease.lost
    assert_free(url, name)
    # asyncio logs a task that its loop left behind.
    waiter._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_lease_outlives_the_call_but_not_the_loop(url: str, name: str, run: Run) -> None:
    kept: list[polylock.asyncio.Lease] = []

    async def main() -> None:
        kept.append(await polylock.asyncio.connect(url).acquire(name, ttl=60))

    run(main())
    wait_until(lambda: not kept[0].is_held)
    assert_free(url, name)


def test_bridges_do_not_keep_loops_alive(memory: str, run: Run) -> None:
    from polylock.asyncio import _bridge

    async def main() -> None:
        async with polylock.asyncio.connect(memory).lock("r"):
            pass

    for _ in range(5):
        run(main())
    gc.collect()
    assert len(_bridge._bridges) == 0


def test_a_collected_lease_warns_and_is_released(url: str, name: str, run: Run) -> None:
    async def main() -> None:
        locks = polylock.asyncio.connect(url)
        await locks.acquire(name, ttl=60)
        gc.collect()
        async with locks.lock(name, wait=20):
            pass

    with pytest.warns(ResourceWarning, match=name):
        run(main())


def test_outside_of_a_loop_the_error_is_clear(memory: str) -> None:
    coroutine = polylock.asyncio.connect(memory).acquire("r")
    with pytest.raises(RuntimeError, match="running asyncio event loop"):
        coroutine.send(None)


def test_a_loop_without_add_reader_gets_a_clear_error(memory: str) -> None:
    class Loop(asyncio.SelectorEventLoop):
        def add_reader(self, *_: Any) -> None:  # type: ignore[override]
            raise NotImplementedError

    with pytest.raises(polylock.Unsupported, match="add_reader"):
        run_on(Loop(), polylock.asyncio.connect(memory).acquire("r"))


def test_the_decorator_wraps_coroutine_functions(url: str, name: str, run: Run) -> None:
    locks = polylock.asyncio.connect(url)

    @locks.locked(name + ":{number}")
    async def job(number: int) -> bool:
        return await locks.try_acquire(f"{name}:{number}") is None

    assert run(job(3)) is True
    with pytest.raises(TypeError, match="coroutine"):
        locks.locked("r")(lambda: None)  # type: ignore[arg-type, return-value]
    assert_free(url, f"{name}:3")


def test_use_after_close(url: str, name: str, run: Run) -> None:
    async def main() -> None:
        locks = polylock.asyncio.connect(url)
        lease = await locks.acquire(name)
        waiter = asyncio.create_task(locks.acquire(name))
        await until(lambda: locks.waiting(name) == 1)
        await locks.close()
        await locks.close()
        with pytest.raises(polylock.Closed):
            await waiter
        for use in (locks.acquire, locks.try_acquire, locks.inspect):
            with pytest.raises(polylock.Closed):
                await use(name)
        assert not lease.is_held
        assert await lease.release() is polylock.Released.NOT_HELD

    run(main())


def test_what_many_tasks_ask_for_at_once_is_sent_as_one(run: Run) -> None:
    tasks = 64

    with RedisServer() as server:

        def reads() -> int:
            stats = server.command("INFO", "stats")
            assert isinstance(stats, bytes)
            return int(stats.partition(b"total_reads_processed:")[2].split()[0])

        async def main() -> None:
            async with polylock.asyncio.connect(server.url) as locks:

                async def pair(number: int) -> None:
                    lease = await locks.acquire(f"r{number}")
                    await lease.release()

                await pair(0)
                before = reads()
                server.pause()
                os.waitid(os.P_PID, server.pid, os.WSTOPPED)
                pairs = [asyncio.create_task(pair(number)) for number in range(tasks)]
                await asyncio.sleep(0)
                # All that they asked for is there when it goes on, so it answers all at once.
                server.resume()
                await asyncio.gather(*pairs)
                assert reads() - before < tasks // 4

        run(main())
