"""The asyncio classes."""

from __future__ import annotations

from asyncio import current_task
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import ref

from .._base import LeaseBase, LockBase, ManagerBase, native_manager
from .._errors import Error, Forked, LockLost
from .._metrics import Event, Subscription, log_to
from .._naming import check_callback, check_name, kind_of, namer
from .._values import Holder, LossReason, Released
from ._bridge import bridge

if TYPE_CHECKING:
    import builtins
    import logging
    from collections.abc import Callable, Coroutine, Hashable
    from types import TracebackType

P = ParamSpec("P")
R = TypeVar("R")


def _user() -> Hashable:
    """This task: one object for as long as something has it. Its id would not do: the next task may get it, too."""
    task = current_task()
    return None if task is None else ref(task)


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

        It is called on the running event loop as soon as that runs, in the context of this call.
        An exception that it raises goes to the loop's exception handler.

        >>> async def main() -> None:
        ...     task = asyncio.current_task()
        ...     async with connect("memory:").lock("report") as lease:
        ...         lease.on_lost(lambda reason: task.cancel(reason))
        >>> asyncio.run(main())
        """
        check_callback(callback)
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

        >>> async def main() -> None:
        ...     async with connect("memory:").lock("report", ttl=10) as lease:
        ...         await lease.extend(60)
        ...         print(50 < lease.remaining <= 60)
        >>> asyncio.run(main())
        True
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

        >>> async def main() -> None:
        ...     lease = await connect("memory:").acquire("report")
        ...     print(await lease.release(), await lease.release())
        >>> asyncio.run(main())
        Released.RELEASED Released.NOT_HELD
        """
        on = bridge()
        answer = self._native.release_start(on.queue)
        if isinstance(answer, int):
            answer = await on.finish(answer)
        return self._released(answer)

    async def __aenter__(self) -> Lease:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            on = bridge()
            outcome = self._native.release_start(on.queue)
            if isinstance(outcome, int):
                outcome = await on.finish(outcome)
        except Forked:
            return  # the parent's, to be released by the parent
        except Error:
            if error is None:
                raise
            return  # what the body raised says more
        self._released(outcome)
        if error is None:
            lost = self._native.lost_at_end(outcome == "not_held")
            if lost is not None:
                raise LockLost(lost, resource=self.resource)


class Lock(LockBase[Lease]):
    """What to acquire, and how. Made by `LockManager.lock`, `shared`, `semaphore` and `lock_all`.

    An async context manager that acquires, gives the `Lease`, and releases. One object may be used many times and
    by many tasks; each task releases what it has acquired itself. Only a `with` in a generator may be left by
    another task than entered it, if no other is inside. Not re-entrant: a holder that acquires again waits for
    itself.

    >>> async def main() -> None:
    ...     lock = connect("memory:").lock("invoice:42", ttl=10, wait=5)
    ...     async with lock as lease:
    ...         print(lease.resource)
    >>> asyncio.run(main())
    invoice:42
    """

    __slots__ = ()

    async def acquire(self) -> Lease:
        """Acquires it, waiting as the lock was made to. See `LockManager.acquire` for the errors.

        >>> async def main() -> None:
        ...     async with await connect("memory:").lock("report").acquire() as lease:
        ...         print(lease.is_held)
        >>> asyncio.run(main())
        True
        """
        lease = await self._acquired()
        return self._keep(_user(), lease)

    async def _acquired(self) -> Lease:
        on = bridge()
        answer = self._native.acquire_start(
            on.queue,
            self.name,
            self._mode,
            self._ttl,
            self._wait,
            self._auto_extend,
            self._max_hold,
            self._label,
            self._fair,
        )
        if isinstance(answer, int):
            answer = await on.finish(answer)
        return Lease(answer)

    async def try_acquire(self) -> Lease | None:
        """Tries once; `None` if somebody else holds it. See `LockManager.try_acquire` for the errors.

        >>> async def main() -> None:
        ...     lock = connect("memory:").lock("report")
        ...     async with lock:
        ...         print(await lock.try_acquire())
        >>> asyncio.run(main())
        None
        """
        on = bridge()
        answer = self._native.try_acquire_start(
            on.queue, self.name, self._mode, self._ttl, self._auto_extend, self._max_hold, self._label, self._fair
        )
        if isinstance(answer, int):
            answer = await on.finish(answer)
        return None if answer is None else self._keep(_user(), Lease(answer))

    async def release(self) -> Released:
        """Releases what this task acquired last by this object; `Released.NOT_HELD` if there is nothing.

        Raises:
            Forked: It belongs to the parent process.

        >>> async def main() -> None:
        ...     lock = connect("memory:").lock("report")
        ...     await lock.acquire()
        ...     print(await lock.release(), await lock.release())
        >>> asyncio.run(main())
        Released.RELEASED Released.NOT_HELD
        """
        lease = self._take(_user())
        return Released.NOT_HELD if lease is None else await lease.release()

    async def __aenter__(self) -> Lease:
        lease = await self._acquired()
        return self._enter(_user(), lease)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lease: Lease | None = self._entered_by(_user())
        if lease is not None:
            await lease.__aexit__(kind, error, traceback)
        elif error is None:
            raise RuntimeError(f"{self!r} was not entered by this task, and not by one other alone")


class LockManager(ManagerBase[Lock]):
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
    _lock = Lock

    async def acquire(
        self,
        name: str,
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
        fair: bool = False,
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

        >>> async def main() -> None:
        ...     lease = await connect("memory:").acquire("report", ttl=10, wait=5)
        ...     print(await lease.release())
        >>> asyncio.run(main())
        Released.RELEASED
        """
        on = bridge()
        answer = self._native.acquire_start(on.queue, name, None, ttl, wait, auto_extend, max_hold, label, fair)
        if isinstance(answer, int):
            answer = await on.finish(answer)
        return Lease(answer)

    async def try_acquire(
        self,
        name: str,
        ttl: float = 30.0,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
        fair: bool = False,
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
        answer = self._native.try_acquire_start(on.queue, name, None, ttl, auto_extend, max_hold, label, fair)
        if isinstance(answer, int):
            answer = await on.finish(answer)
        return None if answer is None else Lease(answer)

    def locked(
        self,
        name: str,
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
        fair: bool = False,
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
        check_name(name)

        def decorate(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
            from functools import wraps  # noqa: PLC0415 - of use only here

            if kind_of(function) != "coroutine function":
                raise TypeError(f"{function!r} is a {kind_of(function)}: use polylock.connect, or a lock inside")
            name_of = namer(name, function)

            @wraps(function)
            async def locked(*args: P.args, **kwargs: P.kwargs) -> R:
                resource = name_of(*args, **kwargs)
                async with await self.acquire(resource, ttl, wait, auto_extend, max_hold, label, fair):
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

        >>> async def main() -> None:
        ...     locks = connect("memory:")
        ...     async with locks.lock("report", label="nightly"):
        ...         holder = await locks.inspect("report")
        ...     print(holder.label)
        >>> asyncio.run(main())
        nightly
        """
        on = bridge()
        answer: Any = self._native.inspect_start(on.queue, name)
        if isinstance(answer, int):
            answer = await on.finish(answer)
        return None if answer is None else Holder(*answer)

    async def list(self, pattern: str = "*", limit: int = 1000) -> builtins.list[Holder]:
        """Who holds the resources whose names match `pattern`: an entry for each holder, in the order of the names.

        On Redis it goes through all keys of the server, step by step without holding it up. It finds what this
        library holds; a lock of another library is found by its full name alone.

        Args:
            pattern: ``*`` stands for any text, ``?`` for any one character, a backslash takes the next as it is.
            limit: How many holders it gives at most: 1 to 100,000.

        Raises:
            Unsupported: The backend cannot tell.
            InvalidArgument: for `pattern` and `limit`.
            Unavailable: The server did not answer.
            AuthError: The server refused the user, the password or a permission.
            Closed: The manager was closed.
            Forked: It belongs to the parent process.

        >>> async def main() -> None:
        ...     locks = connect("memory:")
        ...     async with locks.lock("invoice:42"):
        ...         print([holder.resource for holder in await locks.list("invoice:*")])
        >>> asyncio.run(main())
        ['invoice:42']
        """
        on = bridge()
        answer: Any = self._native.list_start(on.queue, pattern, limit)
        if isinstance(answer, int):
            answer = await on.finish(answer)
        return [Holder(*fields) for fields in answer]

    async def break_(self, name: str, fencing_token: int | None = None, *, owner: str | None = None) -> bool:
        """Frees `name` though somebody holds it, if that is still the holder that was seen; says whether it was.

        Give the fencing token or the owner that `inspect` or `list` showed. The holder is told that its lease is lost
        no later than at its next renewal; until then it may go on: break a lock when its holder is dead or hung, or
        where the fencing token is checked.

        Raises:
            Unsupported: The backend cannot break a lock.
            InvalidArgument: for `name`, `fencing_token`, `owner`.
            Unavailable: The server did not answer; it may have been freed or not.
            AuthError: The server refused the user, the password or a permission.
            Closed: The manager was closed.
            Forked: It belongs to the parent process.

        >>> async def main() -> None:
        ...     locks = connect("memory:")
        ...     hung = await locks.acquire("nightly")
        ...     print(await locks.break_("nightly", hung.fencing_token), hung.loss)
        >>> asyncio.run(main())
        True taken
        """
        on = bridge()
        answer = self._native.break_lock_start(on.queue, name, fencing_token, owner)
        if isinstance(answer, int) and not isinstance(answer, bool):
            answer = await on.finish(answer)
        return answer

    def on_event(self, callback: Callable[[Event], object]) -> Subscription:
        """Has `callback` called for what happens to this manager's leases from now on.

        It is called in batches, within some 10 ms, on the running event loop, in the context of this call.
        An exception that it raises goes to the loop's exception handler, and the rest of that batch is dropped.
        Nobody who acquires or releases waits for it.

        Raises:
            Closed: The manager was closed.
            Forked: It belongs to the parent process.

        >>> async def main() -> None:
        ...     locks, seen = connect("memory:"), asyncio.Queue()
        ...     subscription = locks.on_event(seen.put_nowait)
        ...     async with locks.lock("report"):
        ...         print((await seen.get()).kind)
        ...     subscription.close()
        >>> asyncio.run(main())
        acquired
        """
        check_callback(callback)
        context = copy_context()
        return Subscription(self._native.events(), bridge(), lambda event: context.run(callback, event))

    def log(self, logger: logging.Logger | None = None) -> Subscription:
        """Writes what happens to `logger`, which is ``logging.getLogger("polylock")`` by default.

        Losses and failed extensions are warnings, the rest is debug. The event's fields are in the record's
        ``polylock``.

        Raises:
            Closed: The manager was closed.
            Forked: It belongs to the parent process.

        >>> async def main() -> None:
        ...     connect("memory:").log().close()
        >>> asyncio.run(main())
        """
        import logging  # noqa: PLC0415 - of use only here

        return self.on_event(log_to(logging.getLogger("polylock") if logger is None else logger))

    async def close(self) -> None:
        """Ends it: waiters get `Closed`, leases are released, connections let go. Returns when that is done.

        A server that does not answer is given up when its leases must have expired. Closing twice is harmless.

        >>> asyncio.run(connect("memory:").close())
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

    To be called inside a loop or outside; not to be awaited. Arguments and errors are those of `polylock.connect`.

    >>> connect("memory:")
    <polylock.asyncio.LockManager memory>
    """
    return LockManager(native_manager(url, prefix, drift_factor, node_timeout))
