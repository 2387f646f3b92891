"""What the blocking and the asyncio lock share: state, scripts, and redis-py's messages."""

from __future__ import annotations

import logging
import threading
import time as mod_time
from types import SimpleNamespace
from typing import Any, NoReturn
from uuid import uuid4

from redis._parsers.base import BaseParser
from redis.exceptions import (
    ConnectionError,  # noqa: A004 - redis-py's, which its users catch
    LockError,
    LockNotOwnedError,
    RedisError,
    TimeoutError,  # noqa: A004 - as above
)

from .._errors import AcquireTimeout, AuthError, Conflict, Error, InvalidArgument, Unavailable, Unsupported

logger = logging.getLogger("polylock.redis")

AUTO_TTL = 30.0
"""Seconds for which a renewed lock without timeout stays taken after its process has died."""


class NoAnswer(ConnectionError, TimeoutError):
    """The server says nothing: with redis-py a `ConnectionError` or a `TimeoutError`, by what it waits for."""

    __module__ = "polylock.redis"


def _as_redis_pys(error: Error) -> RedisError:
    """What redis-py would have raised."""
    if error._reply is not None:
        said: RedisError = BaseParser.parse_error(error._reply)  # type: ignore[no-untyped-call]
        return said
    return ConnectionError(str(error)) if error._no_connection else NoAnswer(str(error))


class LockBase:
    """A lock of redis-py, apart from what waits."""

    # KEYS[1] the lock; ARGV[1] token, ARGV[2] the channel that wakes waiters. Answers 1 if it was ours.
    LUA_RELEASE_SCRIPT = """
        if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
        redis.call('DEL', KEYS[1])
        redis.pcall('PUBLISH', ARGV[2], '')
        return 1
    """

    # KEYS[1] the lock; ARGV[1] token, ARGV[2] ms to add, ARGV[3] '1' to have them instead of what is left.
    LUA_EXTEND_SCRIPT = """
        if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
        local left = redis.call('PTTL', KEYS[1])
        if left < 0 then return 0 end
        if ARGV[3] == '1' then left = 0 end
        redis.call('PEXPIRE', KEYS[1], left + ARGV[2])
        return 1
    """

    # KEYS[1] the lock; ARGV[1] token, ARGV[2] ms from now.
    LUA_REACQUIRE_SCRIPT = """
        if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
        redis.call('PEXPIRE', KEYS[1], ARGV[2])
        return 1
    """

    # KEYS[1] the lock; ARGV[1] token. From now on it does not expire.
    LUA_PERSIST_SCRIPT = """
        if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
        redis.call('PERSIST', KEYS[1])
        return 1
    """

    name: Any
    lua_persist: Any = None
    lua_release: Any = None
    lua_extend: Any = None
    lua_reacquire: Any = None

    auto_extend = False
    """Whether it is renewed in the background until it is released."""

    def __init__(
        self,
        redis: Any,
        name: str,
        timeout: float | None = None,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        thread_local: bool = True,
        raise_on_release_error: bool = True,
    ) -> None:
        self.redis = redis
        self.name = name
        self.timeout = timeout
        self.sleep = sleep
        self.blocking = blocking
        self.blocking_timeout = blocking_timeout
        self.thread_local: bool = bool(thread_local)
        self.raise_on_release_error = raise_on_release_error
        self.local: Any = threading.local() if self.thread_local else SimpleNamespace()
        self._forget()
        self.register_scripts()

    def register_scripts(self) -> None:
        """Prepares the scripts, once for each class."""
        cls = type(self)
        if cls.lua_persist is None:
            cls.lua_persist = self.redis.register_script(cls.LUA_PERSIST_SCRIPT)
        if cls.lua_release is None:
            cls.lua_release = self.redis.register_script(cls.LUA_RELEASE_SCRIPT)
        if cls.lua_extend is None:
            cls.lua_extend = self.redis.register_script(cls.LUA_EXTEND_SCRIPT)
        if cls.lua_reacquire is None:
            cls.lua_reacquire = self.redis.register_script(cls.LUA_REACQUIRE_SCRIPT)

    @property
    def fencing_token(self) -> int | None:
        """The fencing token of what this thread has acquired; `None` if nothing, or with a token of its own."""
        return getattr(self.local, "fencing_token", None)

    def _token(self) -> bytes | None:
        # A thread that has never acquired has no attribute at all.
        return getattr(self.local, "token", None)

    def _lease_of(self, token: bytes) -> Any:
        """The renewed lease behind `token`, if it is one."""
        lease = getattr(self.local, "lease", None)
        return lease if lease is not None and lease.owner_token.encode() == token else None

    def _forget(self) -> None:
        self.local.token = None
        self.local.lease = None
        self.local.fencing_token = None

    def _forget_if(self, token: bytes) -> None:
        # Meanwhile another task or thread may have acquired by the same object.
        if self._token() == token:
            self._forget()

    def _keep(self, lease: Any) -> None:
        """Takes over what the engine acquired."""
        self.local.fencing_token = lease.fencing_token
        self.local.token = lease.owner_token.encode()
        if self.auto_extend:
            self.local.lease = lease
        else:
            # As with redis-py: it lasts for its timeout, also if this object or process is gone by then.
            lease._native.leave()
            self.local.lease = None

    def _keep_token(self, token: bytes) -> None:
        """Takes over what was acquired without the engine."""
        self._forget()
        self.local.token = token

    def _engine_name(self) -> str | None:
        """The name as the engine knows it; `None` if it is not text."""
        try:
            return self._encoded(self.name).decode()
        except UnicodeDecodeError:
            return None

    def _engine_options(self, sleep: float, wait: float | None) -> dict[str, Any]:
        if wait is not None:
            # redis-py gives up when one more sleep would be too long, so never later than `wait`.
            wait = 0 if sleep > wait else wait - sleep / 2
        return {"ttl": self.timeout or AUTO_TTL, "wait": wait, "auto_extend": self.auto_extend}

    def _wait_for(self, blocking: bool | None, blocking_timeout: float | None) -> float | None:
        """Seconds to wait: 0 tries once, `None` waits for ever."""
        if blocking is None:
            blocking = self.blocking
        if blocking_timeout is None:
            blocking_timeout = self.blocking_timeout
        if not blocking:
            return 0
        return None if blocking_timeout is None else max(blocking_timeout, 0)

    def _encoded(self, value: Any) -> bytes:
        try:
            encoder = self.redis.connection_pool.get_encoder()
        except AttributeError:  # a cluster
            encoder = self.redis.get_encoder()
        return bytes(encoder.encode(value))

    def _token_or_new(self, token: str | bytes | None) -> bytes:
        if self.auto_extend:
            raise Unsupported("what is acquired without the engine cannot be renewed: see polylock.redis")
        return uuid4().hex.encode() if token is None else self._encoded(token)

    def _channel(self) -> bytes:
        """Where the engine's waiters listen: in the cluster slot of the lock."""
        name = self._encoded(self.name)
        tag = name.partition(b"{")[2].partition(b"}")
        return b"polylock:wake:" + (name if tag[0] and tag[1] else b"{" + name + b"}")

    def _milliseconds(self, seconds: float) -> int:
        return int(seconds * 1000)

    def _not_owned(self, what: str) -> NoReturn:
        raise LockNotOwnedError(f"Cannot {what} a lock that's no longer owned", lock_name=self.name)

    def _held_token(self, what: str) -> bytes:
        """The token to extend by; fails as redis-py does."""
        token = self._token()
        if token is None:
            raise LockError(f"Cannot {what} an unlocked lock", lock_name=self.name)
        if self.timeout is None:
            raise LockError(f"Cannot {what} a lock with no timeout", lock_name=self.name)
        return token

    def _token_to_release(self) -> bytes:
        token = self._token()
        if token is None:
            message = "Cannot release a lock that's not owned or is already unlocked."
            raise LockError(message, lock_name=self.name)
        return token

    def _is_in_use(self, error: Error) -> bool:
        """Whether the engine did not acquire it because somebody else has it. Raises what redis-py's users catch.

        If it answers `False`, the engine cannot acquire it, and it is to be tried without: the client may do what the
        engine may not, as on keys or commands that it is not permitted, or fails by an error of its own.
        """
        if isinstance(error, AcquireTimeout) or (isinstance(error, Conflict) and self.auto_extend):
            return True
        if isinstance(error, Unavailable) or (self.auto_extend and error._reply is not None):
            raise _as_redis_pys(error) from error
        if self.auto_extend or not isinstance(error, (AuthError, Conflict, InvalidArgument, Unsupported)):
            raise error
        logger.info("%r is acquired without the engine, so without a fencing token: %s", self.name, error)
        return False


__all__ = ["LockBase", "LockError", "LockNotOwnedError", "mod_time"]
