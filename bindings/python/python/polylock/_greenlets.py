"""Under gevent and eventlet: there a thread that waits in the engine would stop all greenlets, the holder's too."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ._errors import AcquireTimeout, Unavailable, Unsupported

if TYPE_CHECKING:
    from . import _native

LONGEST_OUTAGE = 30.0
"""Seconds for which a server may be out of reach for who waits for ever, as in the engine."""


def is_replaced(sleep: Any) -> bool:
    """Whether this is not `time.sleep` itself: gevent, eventlet or a test decides how time passes."""
    return getattr(sleep, "__module__", None) != "time"


def refuse_listeners() -> None:
    """The thread that calls listeners would be a greenlet, and wait in the engine."""
    if is_replaced(time.sleep):
        raise Unsupported("nothing is called back under gevent and eventlet: ask Lease.lost")


def cooperative(native: _native.Manager) -> Any:
    """A manager to be used as `native`, whose waits let other greenlets run."""
    return _Asking(native) if is_replaced(time.sleep) else native


class _Asking:
    """A native manager that asks again and again instead of waiting in the engine."""

    __slots__ = ("_native",)

    def __init__(self, native: _native.Manager) -> None:
        self._native = native

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def __repr__(self) -> str:
        return repr(self._native)

    def acquire(self, name: Any, mode: Any, ttl: Any, wait: Any, *options: Any) -> _native.Lease:
        from random import uniform  # noqa: PLC0415 - of use only here

        *_, fair = options
        if wait is not None and not wait > 0:
            return self._native.acquire(name, mode, ttl, wait, *options)
        if fair:
            raise Unsupported("who asks again and again, as under gevent and eventlet, has no place in line (fair)")
        limit = None if wait is None else time.monotonic() + wait
        outage: float | None = None
        while True:
            try:
                return self._native.acquire(name, mode, ttl, 0, *options)
            except AcquireTimeout:
                outage, now = None, time.monotonic()
                if limit is not None and now >= limit:
                    raise
            except Unavailable:
                now = time.monotonic()
                outage = now if outage is None else outage
                if now >= (outage + LONGEST_OUTAGE if limit is None else limit):
                    raise
            pause = uniform(0.01, 0.1)
            time.sleep(pause if limit is None else max(0.0, min(pause, limit - now)))
