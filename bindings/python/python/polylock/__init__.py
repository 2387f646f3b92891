"""Distributed locks on servers that you already run, or on files where there is none.

    import polylock

    locks = polylock.connect("redis://localhost:6379")
    with locks.lock("invoice:42", ttl=10, wait=5) as lease:
        charge(lease.fencing_token)

Times are seconds. `polylock.asyncio` has the same for event loops. Importing starts no thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _process
from ._base import publish
from ._blocking import Lease, Lock, LockManager, connect
from ._errors import (
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
from ._metrics import Event, EventKind, Histogram, Metric, Point, Subscription
from ._native import __version__
from ._values import Capabilities, Guarantee, Holder, LossReason, Mode, Released

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
    "__version__",
]

_process.install()

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # `import polylock` alone makes polylock.asyncio usable, without the price of importing asyncio.
        if name == "asyncio":
            from importlib import import_module  # noqa: PLC0415

            return import_module("polylock.asyncio")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


publish(globals(), "polylock")
