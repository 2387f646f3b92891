"""The blocking API, beyond what the scenarios say."""

from __future__ import annotations

import asyncio
import copy
import ctypes
import datetime
import functools
import gc
import os
import pickle
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis_server import RedisServer

import polylock
import polylock.asyncio
from conftest import assert_free, unique, wait_until


def test_what_is_made_by_others_says_by_whom() -> None:
    made: Any
    for made, by in ((polylock.LockManager, "connect"), (polylock.Lock, "lock"), (polylock.Lease, "acquire")):
        for arguments in ((), ("redis://localhost",)):
            with pytest.raises(TypeError, match=rf"{by}\("):
                made(*arguments)


def test_a_lost_lease_says_what_kept_it_from_being_extended() -> None:
    with RedisServer() as server, polylock.connect(server.url) as locks:
        with pytest.raises(polylock.LockLost) as caught, locks.lock("r", ttl=1) as lease:
            server.kill()
            with pytest.raises(polylock.Unavailable):
                lease.extend()
            wait_until(lambda: not lease.is_held)
        assert any("127.0.0.1" in cause for cause in caught.value.causes), caught.value
        with pytest.raises(polylock.LockLost, match=r"127\.0\.0\.1"):
            lease.extend()


def test_an_error_shows_the_value_that_was_given(memory: str) -> None:
    locks = polylock.connect(memory)
    calls: dict[str, Callable[[], object]] = {
        "of must not be negative: -1": lambda: locks.semaphore("s", -1).acquire(),
        f"of is out of range: {10**30}": lambda: locks.semaphore("s", 10**30).acquire(),
        "limit must not be negative: -1": lambda: locks.list("*", -1),
        f"fencing_token is out of range: {-(10**30)}": lambda: locks.break_("r", -(10**30)),
    }
    for message, call in calls.items():
        with pytest.raises(polylock.InvalidArgument) as caught:
            call()
        assert str(caught.value) == message
        assert caught.value.argument == message.split(" ", maxsplit=1)[0]
    seconds: Any = datetime.timedelta(seconds=10)
    for argument in ("ttl", "wait", "max_hold"):
        with pytest.raises(TypeError, match=f"{argument} must be a number of seconds, not timedelta"):
            locks.acquire("r", **{argument: seconds})


def test_who_gives_up_says_which_server_says_nothing() -> None:
    with RedisServer() as server, polylock.connect(server.url) as locks:
        server.pause()
        with pytest.raises(polylock.Unavailable) as caught:
            locks.acquire("r", ttl=30, wait=0.1)
        server.resume()
        assert urlsplit(server.url).netloc in str(caught.value)


def test_with_gives_the_lease_and_releases_it(url: str, name: str) -> None:
    with polylock.connect(url) as locks, locks.lock(name, ttl=5, wait=5, label="night shift") as lease:
        assert (lease.resource, lease.is_held, lease.lost, lease.loss) == (name, True, False, None)
        assert 0 < lease.remaining <= 5
        assert time.time() < lease.deadline <= time.time() + 5
        assert len(lease.owner_token) == 40
        holder = locks.inspect(name)
        assert holder is not None
        assert (holder.owner, holder.label) == (lease.owner_token, "night shift")
        assert holder.expires_in is not None
        assert 0 < holder.expires_in <= 5
        assert locks.try_acquire(name) is None
    assert_free(url, name)


def test_the_error_of_the_body_is_never_masked(url: str, name: str) -> None:
    locks = polylock.connect(url)
    with pytest.raises(ZeroDivisionError), locks.lock(name, ttl=0.3, auto_extend=False) as lease:
        wait_until(lambda: lease.lost)
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), locks.lock(name):
        locks.close()
        raise ZeroDivisionError


def test_leaving_with_a_lost_lease_raises(url: str, name: str) -> None:
    locks = polylock.connect(url)
    with (
        pytest.raises(polylock.LockLost, match="deadline") as caught,
        locks.lock(name, ttl=0.3, auto_extend=False) as lease,
    ):
        wait_until(lambda: lease.lost)
        assert (lease.loss, lease.remaining) == ("expired", 0)
    assert caught.value.resource == name
    # What was given up on purpose is not lost.
    with locks.lock(name) as lease:
        assert lease.release() is polylock.Released.RELEASED
    with locks.lock(name):
        locks.close()


def test_one_lock_object_serves_many_threads(url: str, name: str) -> None:
    locks = polylock.connect(url)
    lock = locks.lock(name, ttl=10, wait=60)
    inside, most, tokens = 0, 0, list[int]()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with lock as lease:
                inside += 1
                most = max(most, inside)
                tokens.append(lease.fencing_token)
                time.sleep(0)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(tokens) == 160
    assert tokens == sorted(set(tokens))
    assert lock.release() is polylock.Released.NOT_HELD


def in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_the_next_thread_with_the_same_ident_releases_nothing(memory: str) -> None:
    lock = polylock.connect(memory).lock("r")
    leases: list[polylock.Lease] = []
    idents: list[int] = []

    def acquire() -> None:
        idents.append(threading.get_ident())
        leases.append(lock.acquire())

    def release() -> None:
        idents.append(threading.get_ident())
        assert lock.release() is polylock.Released.NOT_HELD

    in_thread(acquire)
    for _ in range(1000):
        in_thread(release)
        if idents[-1] == idents[0]:
            break
    assert idents[-1] == idents[0], "no ident was used twice"
    assert leases[0].release() is polylock.Released.RELEASED


def test_a_with_may_be_left_by_another_thread_than_entered_it(url: str, name: str) -> None:
    """Frameworks run the two halves of a generator in any of their threads."""
    locks = polylock.connect(url)
    lock = locks.lock(name)

    def dependency() -> Iterator[polylock.Lease]:
        with lock as lease:
            yield lease

    for _ in range(3):
        generator = dependency()
        in_thread(lambda: next(generator))  # noqa: B023 - of this turn
        assert locks.try_acquire(name) is None
        assert list(generator) == []
        assert locks.inspect(name) is None
    # With two inside there is no telling whose it is.
    permits = locks.semaphore(name + ":permits", 2)
    if not locks.capabilities.semaphore:
        return
    in_thread(permits.__enter__)
    in_thread(permits.__enter__)
    with pytest.raises(RuntimeError, match="not entered by this thread"):
        permits.__exit__(None, None, None)
    permits.__exit__(ZeroDivisionError, ZeroDivisionError(), None)  # which is not masked
    locks.close()


def test_a_release_inside_a_with_leaves_the_others_alone(memory: str) -> None:
    permits = polylock.connect(memory).semaphore("r", 2)
    in_thread(permits.__enter__)
    with permits as mine:
        assert permits.release() is polylock.Released.RELEASED
        assert not mine.is_held
    # The end of this `with` has not released the other thread's.
    (other,) = (lease for _, lease, _ in permits._held.values())
    assert other.is_held
    permits.__exit__(None, None, None)
    assert not other.is_held


def test_a_held_gil_does_not_lose_the_lease(url: str, name: str) -> None:
    with polylock.connect(url) as locks, locks.lock(name, ttl=1) as lease:
        began = time.monotonic()
        # A PyDLL keeps the GIL while it calls: no Python code runs for three ttls.
        ctypes.PyDLL(None).usleep(ctypes.c_uint(3_100_000))
        assert time.monotonic() - began > 3
        assert lease.is_held
        holder = locks.inspect(name)
        assert holder is not None
        assert holder.owner == lease.owner_token


def test_a_waiter_does_not_hold_the_gil(url: str, name: str) -> None:
    locks = polylock.connect(url)
    lease = locks.acquire(name)
    got = threading.Event()

    def wait() -> None:
        with locks.acquire(name, wait=60):
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: locks.waiting(name) == 1)
    lease.release()
    assert got.wait(30)
    thread.join()


def test_listeners_are_called_once_and_survive_one_that_fails(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    locks = polylock.connect(url)
    told: list[str] = []
    lease = locks.acquire(name, ttl=0.3, auto_extend=False)
    lease.on_lost(lambda _: 1 / 0)
    lease.on_lost(told.append)
    wait_until(lambda: told == ["expired"])
    assert failed[0].exc_type is ZeroDivisionError
    lease.on_lost(told.append)  # lost already: told at once
    wait_until(lambda: told == ["expired", "expired"])
    assert lease.release() is polylock.Released.NOT_HELD


def test_what_would_never_tell_anybody_is_refused(memory: str) -> None:
    locks, loops = polylock.connect(memory), polylock.asyncio.connect(memory)
    lease = locks.acquire("r")
    callbacks: list[Any] = [None, "f", _coroutine, functools.partial(_coroutine), _generator]
    for callback in callbacks:
        for register in (lease.on_lost, locks.on_event, loops.on_event):
            with pytest.raises(TypeError, match="callback must be"):
                register(callback)
    for log in (locks.log, loops.log):
        with pytest.raises(TypeError, match="logger must be"):
            log("polylock")  # type: ignore[arg-type]
    lease.release()

    async def main() -> None:
        async with loops.lock("r") as held:
            with pytest.raises(TypeError, match="coroutine function"):
                held.on_lost(callbacks[2])

    asyncio.run(main())


def test_a_collected_lease_warns_and_is_released(url: str, name: str) -> None:
    locks = polylock.connect(url)
    lease: polylock.Lease | None = locks.acquire(name, ttl=60)
    told: list[str] = []
    assert lease is not None
    lease.on_lost(told.append)
    with pytest.warns(ResourceWarning, match=name):
        lease = None
        gc.collect()
    assert_free(url, name)
    assert told == []


def test_a_collected_lease_is_released_where_the_warning_is_an_error(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []  # it has the frame, and so the lease
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    with polylock.connect(url) as locks, warnings.catch_warnings():
        warnings.simplefilter("error")
        locks.acquire(name)
        assert "unreleased" in str(seen[0].exc_value)
        locks.acquire(name, wait=60).release()


def test_use_after_close(url: str, name: str) -> None:
    locks = polylock.connect(url)
    lease = locks.acquire(name)
    locks.close()
    locks.close()
    for use in (
        lambda: locks.acquire(name),
        lambda: locks.try_acquire(name),
        lambda: locks.inspect(name),
        lambda: locks.waiting(name),
        lambda: locks.lock(name).acquire(),
    ):
        with pytest.raises(polylock.Closed):
            use()
    assert not lease.is_held
    assert not lease.lost
    assert lease.release() is polylock.Released.NOT_HELD


BAD = [
    ({"name": 7}, TypeError, None),
    ({"name": b"bytes"}, TypeError, None),
    ({"name": None}, TypeError, None),
    ({"name": "\udcff"}, polylock.InvalidArgument, "name"),
    ({"ttl": "1"}, TypeError, None),
    ({"ttl": None}, TypeError, None),
    ({"ttl": 2**53 + 1}, polylock.InvalidArgument, "ttl"),
    ({"ttl": 10**400}, polylock.InvalidArgument, "ttl"),
    ({"ttl": float("inf")}, polylock.InvalidArgument, "ttl"),
    ({"ttl": 0.002}, polylock.InvalidArgument, "ttl"),
    ({"ttl": True}, TypeError, None),
    ({"wait": False}, TypeError, None),
    ({"wait": "soon"}, TypeError, None),
    ({"wait": -0.001}, polylock.InvalidArgument, "wait"),
    ({"max_hold": object()}, TypeError, None),
    ({"label": 3}, TypeError, None),
    ({"auto_extend": "yes"}, TypeError, None),
    ({"label": "ü" * 129}, polylock.InvalidArgument, "label"),
]


@pytest.mark.parametrize(("arguments", "error", "argument"), BAD, ids=lambda value: str(value)[:30])
def test_bad_arguments(memory: str, arguments: dict[str, Any], error: type[Exception], argument: str | None) -> None:
    locks = polylock.connect(memory)
    given = {"name": "r"} | arguments
    with pytest.raises(error) as caught:
        locks.acquire(**given)
    assert getattr(caught.value, "argument", None) == argument
    assert str(caught.value).startswith(next(iter(arguments)))
    if "wait" not in arguments:
        with pytest.raises(error):
            locks.try_acquire(**given)
    with pytest.raises(error), locks.lock(**given):
        pass
    assert locks.inspect("r") is None


def test_truth_is_no_number_and_infinity_no_bound(memory: str) -> None:
    locks = polylock.connect(memory)
    with pytest.raises(TypeError, match="limit"):
        locks.list("*", True)
    with pytest.raises(TypeError, match="fencing_token"):
        locks.break_("r", True)
    locks.acquire("r", wait=float("inf")).release()


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"url": ""}, "url"),
        ({"url": "localhost"}, "url"),
        ({"url": "http://localhost"}, "url"),
        ({"url": []}, "url"),
        ({"url": "redis://localhost:notaport"}, "url"),
        ({"url": "redis://one,two"}, "url"),
        ({"url": "memory:", "drift_factor": -1}, "drift_factor"),
        ({"url": "memory:", "drift_factor": float("nan")}, "drift_factor"),
        ({"url": "memory:", "node_timeout": 0}, "node_timeout"),
        ({"url": "memory:", "node_timeout": -1}, "node_timeout"),
        ({"url": "memory:", "prefix": "a\0"}, "prefix"),
    ],
    ids=str,
)
def test_bad_connections(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(polylock.InvalidArgument) as caught:
        polylock.connect(**arguments)
    assert caught.value.argument == argument
    with pytest.raises(polylock.InvalidArgument):
        polylock.asyncio.connect(**arguments)


def test_wrong_types_of_connections() -> None:
    for url in (None, 3, b"memory:", [b"memory:"]):
        with pytest.raises(TypeError):
            polylock.connect(url)  # type: ignore[arg-type]


def test_no_password_is_shown() -> None:
    locks = polylock.connect("redis://user:hunter2@127.0.0.1:1/0")
    with pytest.raises(polylock.Unavailable) as caught:
        locks.acquire("r", wait=0)
    assert isinstance(caught.value, ConnectionError)
    for shown in (repr(locks), str(caught.value), repr(caught.value), repr(caught.value.causes)):
        assert "hunter2" not in shown
    with pytest.raises(polylock.InvalidArgument) as invalid:
        polylock.connect("redis://user:hunter2@:bad:/x/y")
    assert "hunter2" not in str(invalid.value)


def test_nothing_can_be_pickled_or_copied(memory: str) -> None:
    locks = polylock.connect(memory)
    with locks.lock("r") as lease:
        for value in (locks, lease, locks.lock("s")):
            for clone in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="belongs to this process"):
                    clone(value)


def test_the_decorator_names_the_lock_from_the_arguments(url: str) -> None:
    locks = polylock.connect(url)
    prefix = unique()

    @locks.locked(prefix + ":{number}:{kind}", ttl=10, wait=5)
    def job(number: int, *, kind: str = "x") -> str:
        """Does it."""
        assert locks.try_acquire(f"{prefix}:{number}:{kind}") is None
        return f"{number}{kind}"

    assert job(1) == "1x"
    assert job(number=2, kind="y") == "2y"
    assert job.__doc__ == "Does it."
    with pytest.raises(TypeError):
        job()  # type: ignore[call-arg]
    with pytest.raises(polylock.InvalidArgument):
        locks.locked("{other}")(job)
    for wrong in (_coroutine, _generator, _async_generator, 3):
        with pytest.raises(TypeError, match=r"coroutine|generator|int"):
            locks.locked("r")(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name must be str"):
        locks.locked(job)  # type: ignore[arg-type]
    twice = functools.partial(job, 7)
    assert locks.locked(prefix + ":twice")(twice)() == "7x"
    assert_free(url, f"{prefix}:1:x")


async def _coroutine() -> None:
    pass


def _generator() -> Iterator[int]:
    yield 1


async def _async_generator() -> AsyncIterator[int]:
    yield 1


def test_managers_are_made_by_connect() -> None:
    for cls in (polylock.LockManager, polylock.asyncio.LockManager):
        with pytest.raises(TypeError, match="connect"):
            cls("memory:")  # type: ignore[arg-type]


def test_shared_and_semaphore_and_several(url: str) -> None:
    locks, other = polylock.connect(url), polylock.connect(url)
    name = unique()
    can = locks.capabilities
    cases = [
        (can.shared, locks.shared(name), other.shared(name), "shared"),
        (can.semaphore, locks.semaphore(name + ":s", 2), other.semaphore(name + ":s", 2), "permit"),
    ]
    for able, ours, theirs, mode in cases:
        if not able:
            with pytest.raises(polylock.Unsupported):
                ours.acquire()
            continue
        with ours as one, theirs as two:
            assert (one.mode, two.mode) == (mode, mode)
            if mode == "permit":
                assert ours.try_acquire() is None
            else:
                assert locks.try_acquire(name) is None
    both = locks.lock_all([name + ":b", name + ":a"], ttl=10)
    if not can.several:
        with pytest.raises(polylock.Unsupported):
            both.acquire()
        return
    with both as lease:
        assert lease.resources == (name + ":a", name + ":b")
        assert other.try_acquire(name + ":a") is None
    assert_free(url, name + ":b")


def test_fair(url: str) -> None:
    locks, other = polylock.connect(url), polylock.connect(url)
    name = unique()
    ours, theirs = locks.lock(name, fair=True), other.lock(name, fair=True)
    if not locks.capabilities.fair:
        with pytest.raises(polylock.Unsupported):
            ours.acquire()
        return
    with ours:
        assert theirs.try_acquire() is None
        assert other.try_acquire(name, fair=True) is None
    with other.acquire(name, wait=60, fair=True) as lease:
        assert lease.is_held
    with pytest.raises(TypeError, match="fair"):
        locks.lock(name, fair=1).acquire()  # type: ignore[arg-type]


def test_bad_arguments_of_the_other_locks(memory: str) -> None:
    locks = polylock.connect(memory)
    for of in (0, -1, 65_536, 2**70):
        with pytest.raises(polylock.InvalidArgument) as caught, locks.semaphore("s", of):
            pass
        assert caught.value.argument == "of"
    for wrong in ("2", 2.0, True, None):
        with pytest.raises(TypeError):
            locks.semaphore("s", wrong)  # type: ignore[arg-type]
    for names in ([], ["a", "a"], ["a", ""], [""], ["\udcff"], [str(number) for number in range(65)]):
        with pytest.raises(polylock.InvalidArgument, match="names ") as caught, locks.lock_all(names):
            pass
        assert caught.value.argument == "names"
    for call in (locks.acquire, locks.try_acquire, locks.inspect, locks.waiting, lambda name: locks.break_(name, 1)):
        with pytest.raises(polylock.InvalidArgument, match="name must") as caught:
            call("")
        assert caught.value.argument == "name"
    for wrong_names in ("ab", [1], None, {"a", "b"}):
        with pytest.raises(TypeError), locks.lock_all(wrong_names):  # type: ignore[arg-type]
            pass


def test_redlock_by_a_list_of_urls(name: str) -> None:
    urls = os.environ.get("POLYLOCK_TEST_REDLOCK")
    if urls is None:
        pytest.skip("needs five Redis servers")
    for connect in (polylock.connect(urls.split(",")), polylock.connect(tuple(urls.split(",")))):
        with connect as locks, locks.lock(name, ttl=10, wait=20) as lease:
            assert lease.fencing_token > 0
            assert locks.try_acquire(name) is None
    with pytest.raises(polylock.InvalidArgument) as caught:
        polylock.connect(["memory:", "memory:"])
    assert caught.value.argument == "url"
