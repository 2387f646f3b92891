"""Calls back, for blocking code, when a lease is lost: on one daemon thread, started by the first listener."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from . import _native
from ._greenlets import refuse_listeners

if TYPE_CHECKING:
    from collections.abc import Callable

_LONG = 3600.0  # seconds; the thread wakes up for each loss, and so now and then for nothing


class Listeners:
    """The listeners of one process and the thread that calls them."""

    def __init__(self) -> None:
        self.queue = _native.Queue()
        self.callbacks: dict[int, Callable[[Any], object]] = {}
        self._end = self.queue.reserve()
        self._thread = threading.Thread(target=self._run, name="polylock-listeners", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. It must not wait in native code while the interpreter is taken apart."""
        self.queue.push(self._end)
        if threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def _run(self) -> None:
        while True:
            for number, reason in self.queue.turn_within(_LONG):
                if number == self._end:
                    return
                callback = self.callbacks.pop(number, None)
                if callback is not None:
                    _call(callback, reason)


def _call(callback: Callable[[Any], object], reason: object) -> None:
    try:
        callback(reason)
    except BaseException:  # a listener that fails must not take the others along
        hook_args = threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
        threading.excepthook(hook_args)


_current: Listeners | None = None
_starting = threading.Lock()
_of_parents: list[Listeners | None] = []


def listeners() -> Listeners:
    """The listeners of this process; starts the thread if there is none yet.

    Raises:
        Unsupported: Under gevent and eventlet.
    """
    global _current  # noqa: PLW0603 - one per process
    if _current is None:
        refuse_listeners()
        with _starting:
            if _current is None:
                _current = Listeners()
    return _current


def stop() -> None:
    """Ends the thread, if there is one."""
    if _current is not None:
        _current.stop()


def after_fork_in_child() -> None:
    """Leaves the parent's listeners alone: their thread does not exist here, their queue is the parent's."""
    global _current, _starting  # noqa: PLW0603 - one per process
    if _current is not None:
        _of_parents.append(_current)
    _current = None
    _starting = threading.Lock()
