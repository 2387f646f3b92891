"""What the blocking and the asyncio lock share: state, scripts, and redis-py's messages."""

from __future__ import annotations

import threading
import time as mod_time
from types import SimpleNamespace
from typing import Any, NoReturn
from uuid import uuid4

from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004 - redis-py's, which its users catch
    LockError,
    LockNotOwnedError,
)

from .._errors import AcquireTimeout, AuthError, Conflict, Error, Unavailable

AUTO_TTL = 30.0
"""Seconds for which a lock without timeout stays taken after its process has died."""


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

    name: Any
    lua_release: Any = None
    lua_extend: Any = None
    lua_reacquire: Any = None

    auto_extend = False
    """Whether a lock with a timeout is renewed until it is released; one without a timeout always is."""

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
        self.thread_local = bool(thread_local)
        self.raise_on_release_error = raise_on_release_error
        self.local: Any = threading.local() if self.thread_local else SimpleNamespace()
        self._forget()
        self.register_scripts()

    def register_scripts(self) -> None:
        """Prepares the scripts, once for each class."""
        cls = type(self)
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
        if self._is_renewed():
            self.local.lease = lease
        else:
            # As with redis-py: it lasts for its timeout, also if this object or process is gone by then.
            lease._native.leave()
            self.local.lease = None

    def _is_renewed(self) -> bool:
        return self.timeout is None or self.auto_extend

    def _engine_options(self, wait: float | None) -> dict[str, Any]:
        ttl = AUTO_TTL if self.timeout is None else self.timeout
        return {"ttl": ttl, "wait": wait, "auto_extend": self._is_renewed()}

    def _wait_for(self, sleep: float, blocking: bool | None, blocking_timeout: float | None) -> float | None:
        """The engine's wait: 0 tries once, `None` waits for ever."""
        if blocking is None:
            blocking = self.blocking
        if blocking_timeout is None:
            blocking_timeout = self.blocking_timeout
        if not blocking:
            return 0
        if blocking_timeout is None:
            return None
        # redis-py gives up at once if the first sleep would already be too long.
        return 0 if sleep > blocking_timeout else max(blocking_timeout, 0)

    def _encoded(self, token: str | bytes | None) -> bytes:
        if token is None:
            return uuid4().hex.encode()
        encoded = self.redis.connection_pool.get_encoder().encode(token)
        return bytes(encoded)

    def _channel(self) -> str:
        """Where the engine's waiters listen: in the cluster slot of the lock."""
        tag = self.name.partition("{")[2].partition("}")
        tagged = self.name if tag[0] and tag[1] else f"{{{self.name}}}"
        return f"polylock:wake:{tagged}"

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

    def _refused(self, error: Error) -> bool:
        """`False` where redis-py's acquire answers that; else raises what its users catch."""
        if isinstance(error, (AcquireTimeout, Conflict)):
            return False
        if isinstance(error, Unavailable):
            raise ConnectionError(str(error)) from error
        if isinstance(error, AuthError):
            raise AuthenticationError(str(error)) from error
        raise error


__all__ = ["LockBase", "LockError", "LockNotOwnedError", "mod_time"]
