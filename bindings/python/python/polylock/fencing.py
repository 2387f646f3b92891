"""Fencing tokens at what is protected: the script for data in Redis, and a test for any store.

The rule: claim the resource with the token before the first read, then read and write, and have each refused if a
greater token has been there. For SQL see `polylock.postgres.CLAIM`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from polylock._blocking import LockManager, connect

__all__ = ["REDIS_CLAIM", "check_refuses_zombies"]

REDIS_CLAIM: Final = """\
-- KEYS[1] the hash; ARGV[1] the fencing token; ARGV[2] the value, or nothing to claim only
local token = tonumber(ARGV[1])
if tonumber(redis.call('HGET', KEYS[1], 'token') or '0') > token then
    return 0
end
redis.call('HSET', KEYS[1], 'token', ARGV[1])
if ARGV[2] then
    redis.call('HSET', KEYS[1], 'value', ARGV[2])
end
return 1
"""
"""A script for Redis that claims a hash, and writes its value.

``KEYS[1]`` is the hash, with the fields ``token`` and ``value``; ``ARGV[1]`` the fencing token; ``ARGV[2]`` the
value, or nothing to claim only. It answers 1, or 0 for a holder that came too late: with redis-py
``client.eval(REDIS_CLAIM, 1, "data", lease.fencing_token, "value")``.
"""


def check_refuses_zombies(
    write: Callable[[int], object], locks: LockManager | None = None, resource: str = "polylock:zombie"
) -> None:
    """Shows that what you write to refuses a zombie: a holder that was paused beyond its lease, and goes on.

    Args:
        write: Claims and writes with the fencing token that it is given, and raises if it is refused. It is called
            for a holder, for the next one after the lease of the first ran out, for the first again, which it must
            refuse, and for the second again.
        locks: Where the tokens come from; by default memory.
        resource: The name of the lock.

    Raises:
        AssertionError: A write was taken that should have been refused.

    >>> seen = 0
    >>> def write(token: int) -> None:
    ...     global seen
    ...     if token < seen:
    ...         raise ValueError("too late")
    ...     seen = token
    >>> check_refuses_zombies(write)
    """
    if locks is None:
        with connect("memory:") as own:
            return check_refuses_zombies(write, own, resource)
    zombie = locks.acquire(resource, ttl=0.1, auto_extend=False)
    old = zombie.fencing_token
    write(old)
    # It is paused here.
    while zombie.is_held:
        time.sleep(zombie.remaining)
    with locks.lock(resource) as lease:
        new = lease.fencing_token
        write(new)
        try:
            write(old)
        except Exception:  # whatever says that it is refused
            pass
        else:
            raise AssertionError(f"a write with token {old} was taken after one with token {new}")
        write(new)
    return None
