"""Operations of the engine on one event loop.

The loop watches one descriptor. When that is readable the engine reads the replies, moves its operations on, and
returns all that has finished, so one wake-up serves a whole batch and no other thread takes part. What such a batch
starts in its turn is sent as one, too; what is started alone is sent at once.

A result can be lost to a cancellation in three places, and each gives it back:

* The operation is still on its way: it is cancelled in the queue, and the engine undoes it.
* It has finished, but its future was cancelled: whoever hands the results out gives it back (`Bridge._turn`).
* Its future has the result, but the task was cancelled before it ran again: the coroutine that waited does
  (`Bridge.finish`).
"""

from __future__ import annotations

import sys
from asyncio import AbstractEventLoop, Future, get_running_loop
from contextvars import Context
from typing import TYPE_CHECKING, Any
from weakref import ref

from .. import _native
from .._errors import Closed, Unsupported
from .._process import LINGER, is_ending_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable


class Bridge:
    """The operations and listeners of one event loop."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        # Weak, because the registry must not keep a loop alive.
        self.loop = ref(loop)
        self._key = id(loop)
        self._futures: dict[int, Future[object]] = {}
        self.callbacks: dict[int, Callable[[Any], object]] = {}
        self.queue = _native.Queue()
        try:
            # Nothing but the loop keeps the reader: when it goes, the loop was closed. In a context of its own,
            # because the reader would keep the caller's alive.
            Context().run(loop.add_reader, self.queue.fileno(), _Reader(self))
        except NotImplementedError:
            raise Unsupported(
                f"{type(loop).__name__} has no add_reader, which polylock needs: use a selector event loop"
            ) from None

    async def finish(self, number: int) -> Any:
        """Waits for an operation. If the waiting is cancelled, what the operation won is given back."""
        self._futures[number] = future = get_running_loop().create_future()
        try:
            return await future
        except BaseException:
            finished = future.done() and not future.cancelled()
            if not finished:
                self._futures.pop(number, None)
                self.queue.cancel(number)
            elif future.exception() is None:
                _give_back(future.result())
            raise

    def close(self) -> None:
        """Ends what is on its way, and releases in the background the leases that were acquired here."""
        self.callbacks.clear()
        self._futures.clear()
        self.queue.close()
        if _bridges.get(self._key) is self:
            del _bridges[self._key]

    def _turn(self) -> None:
        try:
            results = self.queue.turn()
        except Exception as error:  # a bug: nobody shall wait for ever because of it
            for future in self._futures.values():
                if not future.done():
                    future.set_exception(error)
            self._futures.clear()
            raise
        pop = self._futures.pop
        for number, value in results:
            waiting = pop(number, None)
            if waiting is None:
                callback = self.callbacks.pop(number, None)
                if callback is None:
                    _give_back(value)
                else:
                    self._call(callback, value)
            elif waiting.done():
                _give_back(value)
            elif not isinstance(value, Exception):
                waiting.set_result(value)
            elif isinstance(value, Closed) and is_ending_elsewhere():
                waiting.get_loop().call_later(LINGER, _fail, waiting, value)
            else:
                waiting.set_exception(value)
        if len(results) > 1:
            # Those who waited run before this, and what they start is sent by one system call instead of one each.
            get_running_loop().call_soon(self.queue.flush)
            self.queue.gather()

    def _call(self, callback: Callable[[Any], object], reason: object) -> None:
        try:
            callback(reason)
        except Exception as error:
            loop = self.loop()
            if loop is not None:
                context = {"message": "a listener of a lost lease failed", "exception": error}
                loop.call_exception_handler(context)


class _Reader:
    """What the loop calls when the descriptor is readable."""

    __slots__ = ("_bridge",)

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def __call__(self) -> None:
        self._bridge._turn()

    def __del__(self) -> None:
        self._bridge.close()


def _fail(future: Future[object], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _give_back(value: object) -> None:
    if isinstance(value, _native.Lease):
        value.release_soon()


# By the ids of the loops, which is the quickest look-up. Another loop may get the id of one that is gone.
_bridges: dict[int, Bridge] = {}


def bridge() -> Bridge:
    """The bridge of the running loop.

    Raises:
        RuntimeError: No event loop runs here.
        Unsupported: It is trio's, or cannot watch a descriptor.
    """
    try:
        loop = get_running_loop()
    except RuntimeError:
        _refuse_trio()
        raise RuntimeError("polylock.asyncio works inside a running asyncio event loop only") from None
    found = _bridges.get(id(loop))
    if found is None or found.loop() is not loop:
        found = _bridges[id(loop)] = Bridge(loop)
    return found


def _refuse_trio() -> None:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        raise Unsupported(
            "polylock.asyncio needs an asyncio event loop, and this is trio's: use what polylock.connect makes, "
            "by trio.to_thread.run_sync"
        )
