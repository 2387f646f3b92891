"""The asyncio classes."""

from __future__ import annotations

from asyncio import current_task
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Literal, NoReturn, ParamSpec, TypeVar, cast

from .. import _native, _process
from .._base import LeaseBase, ManagerBase, cannot_be_pickled, native_manager
from .._errors import Error, Forked
from .._naming import namer
from .._values import Holder, LossReason, Released
from ._bridge import bridge

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

P = ParamSpec("P")
R = TypeVar("R")


class Lease(LeaseBase):
    """A held lock.

    It is renewed in the background until it is released, lost or collected, also while the event loop is blocked.
    As an async context manager it is released at the end; if it was lost by then, `LockLost` is raised, unless
    the body raised something itself. It ends with the event loop that acquired it.

    In the child of a fork it is disowned: it stays the parent's, its methods raise `Forked`, and nothing is sent.

    >>> async def main() -> None:
    ...     async with await connect("memory:").acquire("invoice:42", ttl=10) as lease:
    ...         print(lease.is_held, lease.fencing_token > 0)
    >>> asyncio.run(main())
    True True
    """

    __slots__ = ()

    def on_lost(self, callback: Callable[[LossReason], object]) -> None:
        """Has `callback` called once, with the reason, if the lease is lost; never after a release.

        It is called on the running event loop as soon as that runs, in the context of this call. An exception
        that it raises goes to the loop's exception handler.

        >>> async def main() -> None:
        ...     task = asyncio.current_task()
        ...     async with connect("memory:").lock("report") as lease:
        ...         lease.on_lost(lambda reason: task.cancel(reason))
        >>> asyncio.run(main())
        """
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {type(callback).__name__}")
        to = bridge()
        number = to.queue.reserve()
        context = copy_context()
        to.callbacks[number] = lambda reason: context.run(callback, reason)
        if self._listeners is None:
            self._listeners = []
        self._listeners.append((to.callbacks, number))
        self._native.on_lost(to.queue, number)

    async def extend(self, ttl: float | None = None) -> None:
        """Makes the lease last until `ttl` seconds from now (its own ttl if `None`), also at later renewals.

        If it is cancelled the lease has its old or its new deadline.

        Raises:
            LockLost: It is not held any more.
            Unavailable: The server did not answer; the old deadline stands.
            InvalidArgument: for `ttl`.
            Forked: It belongs to the parent process.
        """
        on = bridge()
        answer = self._native.extend_start(on.queue, ttl)
        if answer is not None:
            await on.finish(answer)

    async def release(self) -> Released:
        """Frees the lock in one round. Calling it again is harmless and answers `Released.NOT_HELD`.

        A server that does not answer is no error: see `Released.UNKNOWN`. If it is cancelled the release goes on
        in the background.

        Raises:
            Forked: It belongs to the parent process.
        """
        return self._released(await self._release())

    async def __aenter__(self) -> Lease:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        loss = self.loss
        try:
            outcome = await self._release()
        except Forked:
            return  # the parent's, to be released by the parent
        except Error:
            if error is None:
                raise
            return  # what the body raised says more
        self._released(outcome)
        lost = self._loss_at_exit(loss, outcome)
        if lost is not None and error is None:
            raise lost

    async def _release(self) -> str:
        on = bridge()
        answer: object = self._native.release_start(on.queue)
        if isinstance(answer, int):
            answer = await on.finish(answer)
        return cast("str", answer)


class Lock:
    """What to acquire, and how. Made by `LockManager.lock`, `shared`, `semaphore` and `lock_all`.

    An async context manager that acquires, gives the `Lease`, and releases. One object may be used many times and
    by many tasks; each task releases what it has acquired itself. Not re-entrant: a holder that acquires again
    waits for itself.

    >>> async def main() -> None:
    ...     lock = connect("memory:").lock("invoice:42", ttl=10, wait=5)
    ...     async with lock as lease:
    ...         print(lease.resource)
    >>> asyncio.run(main())
    invoice:42
    """

    __slots__ = (
        "__weakref__",
        "_auto_extend",
        "_held",
        "_label",
        "_max_hold",
        "_mode",
        "_native",
        "_ttl",
        "_wait",
        "name",
    )

    def __init__(
        self,
        native: _native.Manager,
        name: str | tuple[str, ...],
        mode: Literal["shared"] | int | None,
        ttl: float,
        wait: float | None,
        auto_extend: bool,
        max_hold: float | None,
        label: str | None,
    ) -> None:
        self._native = native
        self.name = name
        self._mode = mode
        self._ttl = ttl
        self._wait = wait
        self._auto_extend = auto_extend
        self._max_hold = max_hold
        self._label = label
        # What each task holds, the newest last.
        self._held: dict[int, list[Lease]] = {}

    async def acquire(self) -> Lease:
        """Acquires it, waiting as the lock was made to. See `LockManager.acquire` for the errors."""
        on = bridge()
        answer: object = self._native.acquire_start(
            on.queue, self.name, self._mode, self._ttl, self._wait, self._auto_extend, self._max_hold, self._label
        )
        if isinstance(answer, int):
            answer = await on.finish(answer)
        return self._keep(Lease(cast("_native.Lease", answer)))

    async def try_acquire(self) -> Lease | None:
        """Tries once; `None` if somebody else holds it. See `LockManager.try_acquire` for the errors."""
        on = bridge()
        answer: object = self._native.try_acquire_start(
            on.queue, self.name, self._mode, self._ttl, self._auto_extend, self._max_hold, self._label
        )
        if isinstance(answer, int):
            answer = await on.finish(answer)
        return None if answer is None else self._keep(Lease(cast("_native.Lease", answer)))

    async def release(self) -> Released:
        """Releases what this task acquired last by this object; `Released.NOT_HELD` if there is nothing.

        Raises:
            Forked: It belongs to the parent process.
        """
        lease = self._take()
        return Released.NOT_HELD if lease is None else await lease.release()

    def _keep(self, lease: Lease) -> Lease:
        self._held.setdefault(id(current_task()), []).append(lease)
        return lease

    def _take(self) -> Lease | None:
        task = id(current_task())
        held = self._held.get(task)
        if not held:
            return None
        lease = held.pop()
        if not held:
            del self._held[task]
        return lease

    async def __aenter__(self) -> Lease:
        return await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lease = self._take()
        if lease is not None:
            await lease.__aexit__(kind, error, traceback)

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.Lock {self.name!r}>"

    def __reduce__(self) -> NoReturn:
        cannot_be_pickled(self)


class LockManager(ManagerBase):
    """Makes locks on one backend. Made by `connect`; may be used from the event loops of several threads at once.

    As an async context manager it is closed at the end.

    >>> async def main() -> None:
    ...     async with connect("memory:") as locks:
    ...         async with locks.lock("invoice:42"):
    ...             print(await locks.try_acquire("invoice:42"))
    >>> asyncio.run(main())
    None
    """

    __slots__ = ()

    def lock(
        self,
        name: str,
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
    ) -> Lock:
        """A lock to be used as an async context manager. Nothing is sent until it is acquired.

        Args:
            name: What to lock: UTF-8, 1 to 1,024 bytes, no NUL.
            ttl: Seconds that the lease lasts without renewal, and so the time after which a dead holder frees it.
            wait: Seconds that acquiring may take; `None`: as long as somebody holds it; 0: one try.
            auto_extend: Whether the engine renews the lease until it is released.
            max_hold: Seconds after which no renewal begins any more, so that a hung holder cannot hold for ever.
            label: What `Holder.label` will say: at most 256 bytes.
        """
        return Lock(self._native, name, None, ttl, wait, auto_extend, max_hold, label)

    def shared(
        self,
        name: str,
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
    ) -> Lock:
        """A lock that others may hold shared at the same time, but nobody exclusively.

        The arguments are those of `lock`. Where the backend cannot share, acquiring raises `Unsupported`.

        >>> async def main() -> None:
        ...     locks = connect("memory:")
        ...     async with locks.shared("catalogue"), locks.shared("catalogue"):
        ...         print(await locks.try_acquire("catalogue"))
        >>> asyncio.run(main())
        None
        """
        return Lock(self._native, name, "shared", ttl, wait, auto_extend, max_hold, label)

    def semaphore(
        self,
        name: str,
        of: int,
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
    ) -> Lock:
        """One of `of` permits, 1 to 65,535. All users of a semaphore must name the same number.

        The other arguments are those of `lock`. Where the backend has no semaphores, acquiring raises `Unsupported`;
        where `name` is in use as another kind of lock or with another number, `Conflict`.

        >>> async def main() -> None:
        ...     gateway = connect("memory:").semaphore("mail-gateway", 2)
        ...     async with gateway, gateway:
        ...         print(await gateway.try_acquire())
        >>> asyncio.run(main())
        None
        """
        if not isinstance(of, int) or isinstance(of, bool):
            raise TypeError(f"of must be int, not {type(of).__name__}")
        return Lock(self._native, name, of, ttl, wait, auto_extend, max_hold, label)

    def lock_all(
        self,
        names: list[str] | tuple[str, ...],
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
    ) -> Lock:
        """All of `names`, 1 to 64, or none: whoever takes some of them in another order is no danger.

        The other arguments are those of `lock`. Where the backend cannot do that, acquiring raises `Unsupported`.

        >>> async def main() -> None:
        ...     async with connect("memory:").lock_all(["account:2", "account:1"]) as lease:
        ...         print(lease.resources)
        >>> asyncio.run(main())
        ('account:1', 'account:2')
        """
        if not isinstance(names, (list, tuple)):
            raise TypeError(f"names must be a list or a tuple of str, not {type(names).__name__}")
        return Lock(self._native, tuple(names), None, ttl, wait, auto_extend, max_hold, label)

    async def acquire(
        self,
        name: str,
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
    ) -> Lease:
        """Acquires `name`. The arguments are those of `lock`.

        May be cancelled at any moment: the place in line is left, and what was or will be granted is given back.

        Raises:
            AcquireTimeout: It stayed in use for all of `wait`.
            Conflict: It is in use as something else than a lock.
            Unavailable: The server was out of reach for all of `wait`, or for 30 s if that is `None`.
            AuthError: The server refused the user, the password or a permission.
            InvalidArgument: An argument has no meaning; `Error.argument` names it.
            Closed: The manager was closed, maybe meanwhile.
            Forked: It belongs to the parent process.
        """
        on = bridge()
        answer: object = self._native.acquire_start(on.queue, name, None, ttl, wait, auto_extend, max_hold, label)
        if isinstance(answer, int):
            answer = await on.finish(answer)
        return Lease(cast("_native.Lease", answer))

    async def try_acquire(
        self,
        name: str,
        ttl: float = 30.0,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
    ) -> Lease | None:
        """Tries once to acquire `name`; `None` if somebody else holds it.

        The arguments are those of `lock`, the errors those of `acquire` without `AcquireTimeout`.

        >>> async def main() -> None:
        ...     lease = await connect("memory:").try_acquire("nightly")
        ...     if lease is not None:
        ...         async with lease:
        ...             print("ours")
        >>> asyncio.run(main())
        ours
        """
        on = bridge()
        answer: object = self._native.try_acquire_start(on.queue, name, None, ttl, auto_extend, max_hold, label)
        if isinstance(answer, int):
            answer = await on.finish(answer)
        return None if answer is None else Lease(cast("_native.Lease", answer))

    def locked(
        self,
        name: str,
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]:
        """Decorates a coroutine function to run under a lock whose name is made from its arguments.

        The arguments are those of `lock`; `name` may hold parameters of the function in braces, as `str.format`
        fills them in. The call raises what `acquire` raises, and `LockLost` if the lease was lost meanwhile.

        >>> locks = connect("memory:")
        >>> @locks.locked("invoice:{number}", ttl=10)
        ... async def charge(number: int, amount: float = 1.0) -> str:
        ...     return "held" if await locks.inspect(f"invoice:{number}") else "free"
        >>> asyncio.run(charge(42))
        'held'
        """

        def decorate(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
            from functools import wraps  # noqa: PLC0415 - of use only here
            from inspect import iscoroutinefunction  # noqa: PLC0415

            if not iscoroutinefunction(function):
                raise TypeError(f"{function!r} is no coroutine function: use polylock.connect")
            name_of = namer(name, function)

            @wraps(function)
            async def locked(*args: P.args, **kwargs: P.kwargs) -> R:
                resource = name_of(*args, **kwargs)
                async with await self.acquire(resource, ttl, wait, auto_extend, max_hold, label):
                    return await function(*args, **kwargs)

            return locked

        return decorate

    async def inspect(self, name: str) -> Holder | None:
        """Who holds `name`, or `None` if it is free.

        Raises:
            Unsupported: The backend cannot tell.
            Unavailable: The server did not answer.
            AuthError: The server refused the user, the password or a permission.
            InvalidArgument: for `name`.
            Closed: The manager was closed.
            Forked: It belongs to the parent process.
        """
        on = bridge()
        answer: object = self._native.inspect_start(on.queue, name)
        if isinstance(answer, int):
            answer = await on.finish(answer)
        return None if answer is None else Holder(*cast("tuple[Any, ...]", answer))

    async def close(self) -> None:
        """Ends it: waiters get `Closed`, leases are released, connections let go. Returns when that is done.

        A server that does not answer is given up when its leases must have expired. Closing twice is harmless.
        """
        on = bridge()
        answer = self._native.close_start(on.queue)
        if answer is not None:
            await on.finish(answer)

    async def __aenter__(self) -> LockManager:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()


def connect(
    url: str | list[str] | tuple[str, ...],
    *,
    prefix: str = "",
    drift_factor: float = 0.01,
    node_timeout: float | None = None,
) -> LockManager:
    """A manager for the locks at `url`. Touches no server and starts no thread: the first use does.

    To be called inside a loop or outside; not to be awaited.

    Args:
        url: ``memory:`` or ``memory:NAME`` (this process), ``file:///directory`` (the processes of this host),
            ``redis://[user:password@]host[:port][/database]``, ``rediss://…`` (TLS), ``redis+unix:///path``, a list
            of the Redis URLs of independent servers (Redlock), ``postgres://user:password@host[:port]/database``.
        prefix: Put before each name to make the Redis key. Without one, other libraries' locks on the same name
            exclude ours and are excluded by ours.
        drift_factor: How far clocks may run apart, as a part of the ttl: 0 to 0.5.
        node_timeout: Seconds that one server may take to answer. Default: a third of the ttl, between 0.05 and 2;
            with several servers a fifth of the ttl, between 0.05 and 0.5.

    Raises:
        InvalidArgument: `Error.argument` names the one.
        Unsupported: Locks cannot be kept there.
    """
    _process.enroll_child()
    return LockManager(native_manager(url, prefix, drift_factor, node_timeout))
