"""A drop-in for redis-py's lock: `redis.Redis(...).lock("name", timeout=10, lock_class=polylock.redis.Lock)`.

All parameters, methods, errors and semantics are those of `redis.lock.Lock`, and both exclude each other on one name.
Beyond it:

* a waiter is woken when the lock is released, instead of asking the server every `sleep` seconds;
* `Lock.fencing_token` is there after acquiring;
* `RenewedLock` is renewed in the background until it is released, so its `timeout` is how long a dead process keeps
  others out (30 seconds if there is none). `RenewedLock.lease` is the `polylock.Lease`, with its signal of loss.

The client tells the server's address (of a cluster or of sentinels, too), certificates and the login, and by
`retry` and `socket_timeout` how long a server that is out of reach is tried; the engine connects to it by itself,
once for each pool of connections. Where it cannot (a server that is not verified, a credential provider, a
`redis_connect_func` or a class of connections of one's own), where the user is not permitted the keys and commands
that the engine needs, and where the caller has a `token`, a `do_acquire` or a `time.sleep` of his own (gevent), it
works as redis-py does, by the client: a waiter asks every `sleep` seconds, and there is no fencing token. A
`RenewedLock` raises an error there.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from redis.exceptions import ConnectionError, LockError, LockNotOwnedError  # noqa: A004 - redis-py's
from redis.lock import Lock as _RedisLock

from .. import _blocking
from .._errors import Error
from .._greenlets import is_replaced
from .._values import Released
from ._base import LockBase, NoAnswer, mod_time
from ._settings import Managers

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Lock", "RenewedLock", "LockError", "LockNotOwnedError", "NoAnswer"]

logger: logging.Logger = logging.getLogger(__name__)
_managers = Managers(_blocking.LockManager)


class Lock(LockBase, _RedisLock):
    """`redis.lock.Lock` on the engine. See the module for what it has beyond that."""

    @property
    def lease(self) -> _blocking.Lease | None:
        """The lease that is renewed for this thread, if it is a `RenewedLock` and held."""
        lease: _blocking.Lease | None = getattr(self.local, "lease", None)
        return lease

    def acquire(
        self,
        sleep: float | None = None,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> bool:
        """Acquires it; says whether it did.

        Args:
            sleep: Seconds between two tries, where the server has to be asked (see the module). Gives up, as redis-py
                does, when one more sleep would exceed `blocking_timeout`.
            blocking: Whether to wait.
            blocking_timeout: Seconds to wait; `None`: for as long as it takes.
            token: The value of the key; by default one that nobody else has.
        """
        sleep = self.sleep if sleep is None else sleep
        wait = self._wait_for(blocking, blocking_timeout)
        name = self._engine_name()
        by_hand = token is not None or name is None or type(self).do_acquire is not Lock.do_acquire
        locks = None if by_hand or is_replaced(mod_time.sleep) else _managers.of(self.redis, needed=self.auto_extend)
        if locks is None:
            return self._poll(self._token_or_new(token), sleep, wait)
        try:
            lease = locks.acquire(name, **self._engine_options(sleep, wait))
        except Error as error:
            return not self._is_in_use(error) and self._poll(self._token_or_new(token), sleep, wait)
        if not self.timeout and not self.auto_extend:
            self._persist(lease)
        self._keep(lease)
        return True

    def _persist(self, lease: _blocking.Lease) -> None:
        try:
            if not self.lua_persist(keys=[self.name], args=[lease.owner_token], client=self.redis):
                self._not_owned("keep")
        except BaseException:
            lease._native.release_soon()
            raise

    def _poll(self, token: bytes, sleep: float, wait: float | None) -> bool:
        limit = None if wait is None else mod_time.monotonic() + wait
        while not self.do_acquire(token):
            if wait == 0 or (limit is not None and mod_time.monotonic() + sleep > limit):
                return False
            mod_time.sleep(sleep)
        self._keep_token(token)
        return True

    def do_acquire(self, token: Any) -> bool:
        """Tries once with a token of one's own. To be overridden by those who need that."""
        px = self._milliseconds(self.timeout) if self.timeout else None
        return bool(self.redis.set(self.name, token, nx=True, px=px))

    def locked(self) -> bool:
        """Whether anybody holds it."""
        return self.redis.get(self.name) is not None

    def owned(self) -> bool:
        """Whether this lock holds it, as the server has it."""
        stored = self.redis.get(self.name)
        return stored is not None and self._encoded(stored) == self._token()

    def release(self) -> None:
        """Releases it.

        Raises:
            LockError: This thread has not acquired it.
            LockNotOwnedError: It is not ours any more.
        """
        token = self._token_to_release()
        try:
            self.do_release(token)
        except LockNotOwnedError:
            self._forget_if(token)
            raise
        self._forget_if(token)

    def do_release(self, expected_token: Any) -> None:
        """Releases it if its value is `expected_token`."""
        lease = self._lease_of(expected_token)
        if lease is None:
            if not self.lua_release(keys=[self.name], args=[expected_token, self._channel()], client=self.redis):
                self._not_owned("release")
            return
        released = lease.release()
        if released is Released.NOT_HELD:
            self._not_owned("release")
        if released is Released.UNKNOWN:
            raise ConnectionError(f"no answer to the release of {self.name!r}: it goes on in the background")

    def extend(self, additional_time: float, replace_ttl: bool = False) -> Literal[True]:
        """Adds seconds to what is left, or has them replace it."""
        self._held_token("extend")
        return self.do_extend(additional_time, replace_ttl)

    def do_extend(self, additional_time: float, replace_ttl: bool) -> Literal[True]:
        """See `extend`."""
        token = self._held_token("extend")
        lease = self._lease_of(token)
        if lease is not None:
            left = 0 if replace_ttl else max(self.redis.pttl(self.name), 0) / 1000
            return self._renew(lease, left + additional_time, "extend")
        args = [token, self._milliseconds(additional_time), "1" if replace_ttl else "0"]
        if not self.lua_extend(keys=[self.name], args=args, client=self.redis):
            self._not_owned("extend")
        return True

    def reacquire(self) -> Literal[True]:
        """Makes the whole timeout begin anew."""
        self._held_token("reacquire")
        return self.do_reacquire()

    def do_reacquire(self) -> Literal[True]:
        """See `reacquire`."""
        token = self._held_token("reacquire")
        timeout = float(self.timeout or 0)
        lease = self._lease_of(token)
        if lease is not None:
            return self._renew(lease, timeout, "reacquire")
        args = [token, self._milliseconds(timeout)]
        if not self.lua_reacquire(keys=[self.name], args=args, client=self.redis):
            self._not_owned("reacquire")
        return True

    def _renew(self, lease: _blocking.Lease, ttl: float, what: str) -> Literal[True]:
        try:
            lease.extend(ttl)
        except Error as error:
            if not lease.is_held:
                self._not_owned(what)
            self._is_in_use(error)
        return True

    def __enter__(self) -> Lock:
        if self.acquire():
            return self
        raise LockError("Unable to acquire lock within the time specified", lock_name=self.name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.release()
        except LockError:
            if self.raise_on_release_error:
                raise
            logger.warning("Lock was unlocked or no longer owned when exiting context manager.")


class RenewedLock(Lock):
    """A `Lock` that is renewed in the background until it is released, lost or collected."""

    auto_extend = True


def __getattr__(name: str) -> Any:
    if name == "asyncio":
        from importlib import import_module  # noqa: PLC0415

        return import_module("polylock.redis.asyncio")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
