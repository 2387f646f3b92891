"""What operations answer with: plain values."""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple

LossReason = Literal["expired", "taken", "max_hold"]
"""Why a lease was lost: its deadline passed, the backend said that it is not ours, or `max_hold` was over."""


Mode = Literal["exclusive", "shared", "permit"]
"""How a lease holds its resource: alone, together with others that share it, or as one of so many permits."""


class Released(str, Enum):
    """What became of a lease that was released.

    >>> Released.RELEASED == "released"
    True
    """

    RELEASED = "released"
    """It was ours and is free now."""
    NOT_HELD = "not_held"
    """It was not ours any more; nothing was changed."""
    UNKNOWN = "unknown"
    """The server did not answer. It is being released in the background; its ttl, or its session, ends it at last."""


class Guarantee(str, Enum):
    """How far exclusion can be relied on.

    >>> locks.capabilities.guarantee is Guarantee.FENCED
    True
    """

    BEST_EFFORT = "best_effort"
    """Mostly; a failure of the server may give a lock to two."""
    LEASE = "lease"
    """While clocks run at one speed and servers keep their memory."""
    FENCED = "fenced"
    """Always, where the resource checks the fencing token."""


class Holder(NamedTuple):
    """Who holds a resource.

    >>> holder = locks.inspect("invoice:42")
    >>> (holder.fencing_token == lease.fencing_token, 0 < holder.expires_in <= 10)
    (True, True)
    """

    owner: str
    """The holder's owner token; any text if another library holds it."""
    fencing_token: int | None
    """Its fencing token, if it has one."""
    expires_in: float | None
    """Seconds until it expires unless it is extended, if ever."""
    since: float | None
    """When it was acquired, in Unix seconds by the holder's clock."""
    host: str | None
    """Where its process runs."""
    pid: int | None
    """Its process id there."""
    label: str | None
    """What the holder called itself."""
    resource: str
    """What is held."""
    mode: Mode
    """How it is held."""
    waiting: int | None
    """How many managers, in all processes, have somebody waiting for it; if the backend can tell."""


class Capabilities(NamedTuple):
    """What a backend can do and promise.

    >>> locks.capabilities.across_processes
    False
    """

    guarantee: Guarantee
    """What it promises as deployed."""
    fencing: bool
    """Each lease has a fencing token."""
    across_processes: bool
    """Processes other than this one are excluded."""
    across_hosts: bool
    """Other hosts are excluded."""
    shared: bool
    """Resources can be held shared."""
    semaphore: bool
    """Resources can be semaphores."""
    several: bool
    """Several resources can be taken at once."""
    inspection: bool
    """`inspect` works."""
    listing: bool
    """`list` works."""
    breaking: bool
    """`break_` works."""
    fair: bool
    """Locks that are asked for with ``fair=True`` are given in the order in which it was asked."""
