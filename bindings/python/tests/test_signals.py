"""What signals do to calls of blocking code that wait, and to a `with`."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from redis_server import RedisServer

import polylock
from conftest import assert_free, wait_until
from polylock import _native


def test_ctrl_c_ends_a_wait_and_leaves_nothing(url: str, name: str) -> None:
    locks = polylock.connect(url)

    def interrupt() -> None:
        wait_until(lambda: locks.waiting(name) == 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with locks.lock(name, ttl=30):
        for _ in range(5):
            thread = threading.Thread(target=interrupt)
            thread.start()
            # Nothing else ends it: the holder stays.
            with pytest.raises(KeyboardInterrupt):
                locks.acquire(name)
            thread.join()
            assert locks.waiting(name) == 0
    assert_free(url, name)


def test_who_waits_looks_for_signals_as_often_as_is_promised() -> None:
    assert 0 < _native.SIGNAL_TICK < 0.1


def test_ctrl_c_at_any_line_of_entering_leaves_nothing(memory: str) -> None:
    locks = polylock.connect(memory)
    lock = locks.lock("r", wait=20)
    lines, interrupted = 0, True

    def on_line(_frame: object, event: str, _argument: object) -> Any:
        nonlocal lines
        if event == "line":
            lines -= 1
            if lines == 0:
                raise KeyboardInterrupt
        return on_line

    def on_call(frame: Any, _event: str, _argument: object) -> Any:
        # `_enter` is a single step and a return, between which no signal is looked for.
        own = "polylock" in frame.f_globals["__name__"] and frame.f_code.co_name not in ("__del__", "_enter")
        return on_line if own else None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for number in range(1, 100):
            lines = number
            before = sys.gettrace()
            sys.settrace(on_call)
            try:
                lock.__enter__()
            except KeyboardInterrupt:
                pass
            else:
                interrupted = False
            finally:
                sys.settrace(before)
            if not interrupted:
                break
            gc.collect()
            wait_until(lambda: locks.inspect("r") is None)
    assert not interrupted
    assert number > 3
    lock.__exit__(None, None, None)


@pytest.mark.parametrize("by_lock", [True, False])
def test_ctrl_c_at_any_line_of_leaving_leaves_nothing(memory: str, by_lock: bool) -> None:
    """Also not where the lock and the lease are there for as long as the program."""
    locks = polylock.connect(memory)
    shared = locks.lock("r", wait=20)
    lines, interrupted = 0, True

    def on_line(frame: Any, event: str, _argument: object) -> Any:
        nonlocal lines
        if "polylock" not in frame.f_globals["__name__"]:
            return None
        if event in ("call", "line"):
            lines -= 1
            if lines == -1:
                raise KeyboardInterrupt
        return on_line

    line = 0
    while interrupted:
        lease = shared.__enter__() if by_lock else locks.acquire("r", wait=20)
        ends: Any = shared if by_lock else lease
        lines, interrupted = line, False
        before = sys.gettrace()
        sys.settrace(on_line)
        try:
            ends.__exit__(None, None, None)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(before)
        wait_until(lambda: locks.inspect("r") is None, 5)
        line += 1


def test_ctrl_c_ends_every_call_that_waits_for_a_server() -> None:
    server = RedisServer()
    calls: dict[str, Callable[[polylock.LockManager, polylock.Lease], object]] = {
        "acquire": lambda locks, _: locks.acquire("other"),
        "try_acquire": lambda locks, _: locks.try_acquire("other"),
        "inspect": lambda locks, _: locks.inspect("other"),
        "extend": lambda _, lease: lease.extend(),
        "release": lambda _, lease: lease.release(),
        "close": lambda locks, _: locks.close(),
    }

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    try:
        for call in calls.values():
            # Nothing else ends the call: it would wait for the server for as long as the test may take.
            with polylock.connect(server.url, node_timeout=600) as locks, locks.lock("r", ttl=1800) as lease:
                os.kill(server.pid, signal.SIGSTOP)  # from now on it answers nothing
                timer = threading.Timer(0.2, interrupt)
                with pytest.raises(KeyboardInterrupt):
                    timer.start()
                    call(locks, lease)
                timer.join()
                os.kill(server.pid, signal.SIGCONT)
    finally:
        server.stop()


def test_signal_handlers_run_during_a_wait(memory: str, name: str) -> None:
    locks = polylock.connect(memory)
    lease = locks.acquire(name)
    # The handler may use the same manager.
    before = signal.signal(signal.SIGALRM, lambda *_: lease.release())
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        assert locks.acquire(name, wait=30).release() == "released"
    finally:
        signal.signal(signal.SIGALRM, before)
