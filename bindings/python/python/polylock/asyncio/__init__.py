"""The locks of `polylock` for asyncio: the same names, arguments and defaults, to be awaited.

    import polylock.asyncio

    locks = polylock.asyncio.connect("redis://localhost:6379")
    async with locks.lock("invoice:42", ttl=10, wait=5) as lease:
        await charge(lease.fencing_token)

Replies are read by the event loop itself, and no other thread is woken for a call. Works with every loop that has
`add_reader` (the selector loop, uvloop), with several loops in several threads, and with anyio on asyncio.
"""

from __future__ import annotations

from .._base import publish
from .._errors import (
    AcquireTimeout,
    AuthError,
    Closed,
    Conflict,
    Error,
    Forked,
    InternalError,
    InvalidArgument,
    LockLost,
    Unavailable,
    Unsupported,
)
from .._metrics import Event, EventKind, Histogram, Metric, Point, Subscription
from .._values import Capabilities, Guarantee, Holder, LossReason, Mode, Released
from ._manager import Lease, Lock, LockManager, connect

__all__ = [
    "connect",
    "LockManager",
    "Lock",
    "Lease",
    "Released",
    "LossReason",
    "Mode",
    "Holder",
    "Capabilities",
    "Metric",
    "Point",
    "Histogram",
    "Event",
    "EventKind",
    "Subscription",
    "Guarantee",
    "Error",
    "AcquireTimeout",
    "LockLost",
    "Unavailable",
    "InvalidArgument",
    "Conflict",
    "Unsupported",
    "AuthError",
    "Closed",
    "Forked",
    "InternalError",
]

publish(globals(), "polylock.asyncio")
