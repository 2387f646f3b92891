"""A drop-in for redis-py's asyncio lock.

`redis.asyncio.Redis(...).lock("name", timeout=10, lock_class=polylock.redis.asyncio.Lock)`. See `polylock.redis`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Literal

from redis.asyncio.lock import Lock as _RedisLock
from redis.exceptions import ConnectionError, LockError, LockNotOwnedError  # noqa: A004 - redis-py's

from .._errors import Error
from .._values import Released
from ..asyncio import _manager
from ._base import LockBase, NoAnswer
from ._settings import Managers

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import TracebackType

__all__ = ["Lock", "RenewedLock", "LockError", "LockNotOwnedError", "NoAnswer"]

_sleep = asyncio.sleep  # what replaces it decides how time passes: see `polylock.redis`
logger: logging.Logger = logging.getLogger(__name__)
_managers = Managers(_manager.LockManager)


class Lock(LockBase, _RedisLock):
    """`redis.asyncio.lock.Lock` on the engine. See `polylock.redis` for what it has beyond that."""

    @property
    def lease(self) -> _manager.Lease | None:
        """The lease that is renewed, if it is a `RenewedLock` and held."""
        lease: _manager.Lease | None = getattr(self.local, "lease", None)
        return lease

    async def acquire(
        self,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> bool:
        """Acquires it; says whether it did.

        Args:
            blocking: Whether to wait.
            blocking_timeout: Seconds to wait; `None`: for as long as it takes.
            token: The value of the key; by default one that nobody else has.
        """
        wait = self._wait_for(blocking, blocking_timeout)
        name = self._engine_name()
        by_hand = token is not None or name is None or type(self).do_acquire is not Lock.do_acquire
        is_replaced = asyncio.sleep is not _sleep
        locks = None if by_hand or is_replaced else _managers.of(self.redis, needed=self.auto_extend)
        if locks is None:
            return await self._poll(self._token_or_new(token), wait)
        try:
            lease = await locks.acquire(name, **self._engine_options(self.sleep, wait))
        except Error as error:
            return not self._is_in_use(error) and await self._poll(self._token_or_new(token), wait)
        if not self.timeout and not self.auto_extend:
            await self._persist(lease)
        self._keep(lease)
        return True

    async def _persist(self, lease: _manager.Lease) -> None:
        try:
            if not await self.lua_persist(keys=[self.name], args=[lease.owner_token], client=self.redis):
                self._not_owned("keep")
        except BaseException:
            lease._native.release_soon()
            raise

    async def _poll(self, token: bytes, wait: float | None) -> bool:
        loop = asyncio.get_running_loop()
        limit = None if wait is None else loop.time() + wait
        while not await self.do_acquire(token):
            if wait == 0 or (limit is not None and loop.time() + self.sleep > limit):
                return False
            await asyncio.sleep(self.sleep)
        self._keep_token(token)
        return True

    async def do_acquire(self, token: Any) -> bool:
        """Tries once with a token of one's own. To be overridden by those who need that."""
        px = self._milliseconds(self.timeout) if self.timeout else None
        return bool(await self.redis.set(self.name, token, nx=True, px=px))

    async def locked(self) -> bool:
        """Whether anybody holds it."""
        return await self.redis.get(self.name) is not None

    async def owned(self) -> bool:
        """Whether this lock holds it, as the server has it."""
        stored = await self.redis.get(self.name)
        return stored is not None and self._encoded(stored) == self._token()

    async def release(self) -> None:
        """Releases it. If this is cancelled it may still be held: then it can be called again.

        Raises:
            LockError: It was not acquired by this object.
            LockNotOwnedError: It is not ours any more.
        """
        token = self._token_to_release()
        try:
            await self.do_release(token)
        except LockNotOwnedError:
            self._forget_if(token)
            raise
        self._forget_if(token)

    async def do_release(self, expected_token: Any) -> None:
        """Releases it if its value is `expected_token`."""
        lease = self._lease_of(expected_token)
        if lease is None:
            args = [expected_token, self._channel()]
            if not await self.lua_release(keys=[self.name], args=args, client=self.redis):
                self._not_owned("release")
            return
        released = await lease.release()
        if released is Released.NOT_HELD:
            self._not_owned("release")
        if released is Released.UNKNOWN:
            raise ConnectionError(f"no answer to the release of {self.name!r}: it goes on in the background")

    def extend(self, additional_time: float, replace_ttl: bool = False) -> Awaitable[Literal[True]]:
        """Adds seconds to what is left, or has them replace it."""
        self._held_token("extend")
        return self.do_extend(additional_time, replace_ttl)

    async def do_extend(self, additional_time: float, replace_ttl: bool) -> Literal[True]:
        """See `extend`."""
        token = self._held_token("extend")
        lease = self._lease_of(token)
        if lease is not None:
            left = 0 if replace_ttl else max(await self.redis.pttl(self.name), 0) / 1000
            return await self._renew(lease, left + additional_time, "extend")
        args = [token, self._milliseconds(additional_time), "1" if replace_ttl else "0"]
        if not await self.lua_extend(keys=[self.name], args=args, client=self.redis):
            self._not_owned("extend")
        return True

    def reacquire(self) -> Awaitable[Literal[True]]:
        """Makes the whole timeout begin anew."""
        self._held_token("reacquire")
        return self.do_reacquire()

    async def do_reacquire(self) -> Literal[True]:
        """See `reacquire`."""
        token = self._held_token("reacquire")
        timeout = float(self.timeout or 0)
        lease = self._lease_of(token)
        if lease is not None:
            return await self._renew(lease, timeout, "reacquire")
        args = [token, self._milliseconds(timeout)]
        if not await self.lua_reacquire(keys=[self.name], args=args, client=self.redis):
            self._not_owned("reacquire")
        return True

    async def _renew(self, lease: _manager.Lease, ttl: float, what: str) -> Literal[True]:
        try:
            await lease.extend(ttl)
        except Error as error:
            if not lease.is_held:
                self._not_owned(what)
            self._is_in_use(error)
        return True

    async def __aenter__(self) -> Lock:
        if await self.acquire():
            return self
        raise LockError("Unable to acquire lock within the time specified", lock_name=self.name)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.release()
        except LockError:
            if self.raise_on_release_error:
                raise
            logger.warning("Lock was unlocked or no longer owned when exiting context manager.")


class RenewedLock(Lock):
    """A `Lock` that is renewed in the background until it is released, lost or collected."""

    auto_extend = True
