"""All scenarios, through the blocking and the asyncio API."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest

import polylock
import polylock.asyncio
from conftest import URLS
from scenario import DIRECTORY, FILES, Actor, Play


class Interrupted(Exception):
    """Raised by the signal handler: what Ctrl-C is to a blocking call."""


class BlockingActor(Actor):
    """Through `polylock`."""

    def __init__(self, url: str) -> None:
        self.locks = polylock.connect(url)
        self.begun: Future[Any] | None = None

    async def acquire(self, name: str, options: dict[str, Any]) -> str:
        return self.took(self.locks.acquire(name, **options))

    async def begin(self, name: str, options: dict[str, Any]) -> None:
        self.begun = MAIN.run(lambda: self.locks.acquire(name, **options))

    async def join(self) -> str:
        assert self.begun is not None
        return self.took(await asyncio.wrap_future(self.begun))

    async def cancel(self) -> str:
        assert self.begun is not None
        assert self.begun is MAIN.running, "a blocking call on another thread cannot be interrupted"
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        try:
            await asyncio.wrap_future(self.begun)
        except Interrupted:
            return "cancelled"
        return "too late"

    async def try_acquire(self, name: str, options: dict[str, Any]) -> str:
        return self.took(self.locks.try_acquire(name, **options))

    async def extend(self, ttl: float | None) -> str:
        self.lease.extend(ttl)
        return "ok"

    async def release(self) -> str:
        return str(self.lease.release().value)

    async def lost(self, within: float) -> str:
        told: SimpleQueue[str] = SimpleQueue()
        self.lease.on_lost(told.put)
        try:
            return told.get(timeout=within)
        except Empty:
            return "none"

    async def inspect(self, name: str) -> polylock.Holder | None:
        return self.locks.inspect(name)

    async def close(self) -> str:
        self.locks.close()
        return "ok"

    def waiting(self, name: str) -> int:
        return self.locks.waiting(name)

    def can_inspect(self) -> bool:
        return self.locks.capabilities.inspection


class AsyncioActor(Actor):
    """Through `polylock.asyncio`."""

    def __init__(self, url: str) -> None:
        self.locks = polylock.asyncio.connect(url)
        self.begun: asyncio.Task[polylock.asyncio.Lease] | None = None

    async def acquire(self, name: str, options: dict[str, Any]) -> str:
        return self.took(await self.locks.acquire(name, **options))

    async def begin(self, name: str, options: dict[str, Any]) -> None:
        self.begun = asyncio.create_task(self.locks.acquire(name, **options))

    async def join(self) -> str:
        assert self.begun is not None
        return self.took(await self.begun)

    async def cancel(self) -> str:
        assert self.begun is not None
        self.begun.cancel()
        await asyncio.wait([self.begun])
        return "cancelled" if self.begun.cancelled() else "too late"

    async def try_acquire(self, name: str, options: dict[str, Any]) -> str:
        return self.took(await self.locks.try_acquire(name, **options))

    async def extend(self, ttl: float | None) -> str:
        await self.lease.extend(ttl)
        return "ok"

    async def release(self) -> str:
        return str((await self.lease.release()).value)

    async def lost(self, within: float) -> str:
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.lease.on_lost(told.set_result)
        done, _ = await asyncio.wait([told], timeout=within)
        return told.result() if done else "none"

    async def inspect(self, name: str) -> polylock.Holder | None:
        return await self.locks.inspect(name)

    async def close(self) -> str:
        await self.locks.close()
        return "ok"

    def waiting(self, name: str) -> int:
        return self.locks.waiting(name)

    def can_inspect(self) -> bool:
        return self.locks.capabilities.inspection


class Main:
    """Runs on the main thread, where a signal can end it, what a scenario on another thread begins."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self.running: Future[Any] | None = None

    def run(self, call: Callable[[], Any]) -> Future[Any]:
        """Runs `call` on the main thread, or on one of its own if that is busy."""
        future: Future[Any] = Future()
        if self.running is None or self.running.done():
            self.running = future
            self.jobs.put((future, call))
        else:
            threading.Thread(target=finish, args=(future, call)).start()
        return future

    def serve(self, work: Callable[[], None]) -> None:
        """Runs `work` on a thread, and meanwhile here what it begins."""
        done: Future[None] = Future()
        thread = threading.Thread(target=finish, args=(done, work))
        done.add_done_callback(lambda _: self.jobs.put(None))
        thread.start()
        while job := self.jobs.get():
            finish(*job)
        thread.join()
        done.result()


def finish(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)


def interrupt(*_: object) -> None:
    raise Interrupted


MAIN = Main()


def test_sees_every_file() -> None:
    there = [file for file in DIRECTORY.iterdir() if file.suffix not in (".md", ".tsv")]
    assert len(FILES) == len(there) >= 20
    assert "memory:" in URLS


@pytest.mark.parametrize("where", URLS, ids=lambda url: url.split(":", 1)[0])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_asyncio(file: Path, where: str) -> None:
    asyncio.run(Play(AsyncioActor, where).run(file))


@pytest.mark.parametrize("where", URLS, ids=lambda url: url.split(":", 1)[0])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_blocking(file: Path, where: str) -> None:
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        MAIN.serve(lambda: asyncio.run(Play(BlockingActor, where).run(file)))
    finally:
        signal.signal(signal.SIGUSR1, before)
