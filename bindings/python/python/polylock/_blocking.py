"""The blocking classes."""

from __future__ import annotations

from threading import local
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ._base import LeaseBase, LockBase, ManagerBase, native_manager
from ._greenlets import cooperative
from ._listeners import listeners
from ._metrics import Event, Subscription, log_to
from ._naming import check_callback, check_name, kind_of, namer
from ._native import LeaseEnd, LockEnd
from ._values import Holder, LossReason, Released

if TYPE_CHECKING:
    import builtins
    import logging
    from collections.abc import Callable
    from types import TracebackType

P = ParamSpec("P")
R = TypeVar("R")


class _User(local):
    """This thread. Its ident would not do: the next thread may get it, too."""

    def __init__(self) -> None:
        self.itself = object()


_user = _User()


class Lease(LeaseBase):
    """A held lock.

    It is renewed in the background until it is released, lost or collected, also while Python code is busy or holds
    the GIL. As a context manager it is released at the end; if it was lost by then, `LockLost` is raised, unless
    the body raised something itself. May be used from several threads at once.

    In the child of a fork it is disowned: it stays the parent's, its methods raise `Forked`, and nothing is sent.

    >>> locks = connect("memory:")
    >>> with locks.acquire("invoice:42", ttl=10) as lease:
    ...     lease.is_held, lease.fencing_token > 0
    (True, True)
    """

    __slots__ = ()

    def on_lost(self, callback: Callable[[LossReason], object]) -> None:
        """Has `callback` called once, with the reason, if the lease is lost; never after a release.

        It is called no later than at the deadline, on a daemon thread that all listeners share, so it must be
        quick. An exception that it raises goes to `threading.excepthook`.

        >>> lease = connect("memory:").acquire("report")
        >>> lease.on_lost(lambda reason: print("stop working:", reason))
        >>> lease.release().value
        'released'
        """
        check_callback(callback)
        to = listeners()
        number = to.queue.reserve()
        to.callbacks[number] = callback
        if self._listeners is None:
            self._listeners = []
        self._listeners.append((to.callbacks, number))
        self._native.on_lost(to.queue, number)

    def extend(self, ttl: float | None = None) -> None:
        """Makes the lease last until `ttl` seconds from now (its own ttl if `None`), also at later renewals.

        Raises:
            LockLost: It is not held any more.
            Unavailable: The server did not answer; the old deadline stands.
            InvalidArgument: for `ttl`.
            Forked: It belongs to the parent process.

        >>> lease.extend(60)
        >>> 50 < lease.remaining <= 60
        True
        """
        self._native.extend(ttl)

    def release(self) -> Released:
        """Frees the lock in one round. Calling it again is harmless and answers `Released.NOT_HELD`.

        A server that does not answer is no error: see `Released.UNKNOWN`.

        Raises:
            Forked: It belongs to the parent process.

        >>> lease.release()
        <Released.RELEASED: 'released'>
        >>> lease.release()
        <Released.NOT_HELD: 'not_held'>
        """
        return self._released(self._native.release())

    def __enter__(self) -> Lease:
        return self

    if TYPE_CHECKING:

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
        ) -> None: ...
    else:
        __exit__ = LeaseEnd._end


class Lock(LockBase[Lease]):
    """What to acquire, and how. Made by `LockManager.lock`, `shared`, `semaphore` and `lock_all`.

    A context manager that acquires, gives the `Lease`, and releases. One object may be used many times and by
    many threads; each thread releases what it has acquired itself. Only a `with` in a generator may be left by
    another thread than entered it, if no other is inside. Not re-entrant: a holder that acquires again waits for
    itself.

    >>> lock = connect("memory:").lock("invoice:42", ttl=10, wait=5)
    >>> with lock as lease:
    ...     lease.resource
    'invoice:42'
    """

    __slots__ = ()

    def acquire(self) -> Lease:
        """Acquires it, waiting as the lock was made to. See `LockManager.acquire` for the errors.

        >>> locks.lock("report").acquire().is_held
        True
        """
        return self._keep(_user.itself, self._acquired())

    def _acquired(self) -> Lease:
        native = self._native.acquire(
            self.name, self._mode, self._ttl, self._wait, self._auto_extend, self._max_hold, self._label, self._fair
        )
        return Lease(native)

    def try_acquire(self) -> Lease | None:
        """Tries once; `None` if somebody else holds it. See `LockManager.try_acquire` for the errors.

        >>> locks.lock("invoice:42").try_acquire() is None
        True
        """
        native = self._native.try_acquire(
            self.name, self._mode, self._ttl, self._auto_extend, self._max_hold, self._label, self._fair
        )
        return None if native is None else self._keep(_user.itself, Lease(native))

    def release(self) -> Released:
        """Releases what this thread acquired last by this object; `Released.NOT_HELD` if there is nothing.

        Raises:
            Forked: It belongs to the parent process.

        >>> lock = locks.lock("report")
        >>> lease = lock.acquire()
        >>> lock.release()
        <Released.RELEASED: 'released'>
        """
        lease = self._take(_user.itself)
        return Released.NOT_HELD if lease is None else lease.release()

    def __enter__(self) -> Lease:
        return self._enter(_user.itself, self._acquired())

    if TYPE_CHECKING:

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
        ) -> None: ...
    else:
        __exit__ = LockEnd._end


class LockManager(ManagerBase[Lock]):
    """Makes locks on one backend. Made by `connect`; may be used from many threads at once.

    As a context manager it is closed at the end.

    >>> with connect("memory:") as locks:
    ...     with locks.lock("invoice:42"):
    ...         locks.try_acquire("invoice:42") is None
    True
    """

    __slots__ = ()
    _lock = Lock

    def acquire(
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

        Blocks with the GIL released. On the main thread signal handlers run meanwhile, and Ctrl-C ends it within
        100 ms, leaving no lease.

        Raises:
            AcquireTimeout: It stayed in use for all of `wait`.
            Conflict: It is in use as something else than a lock.
            Unavailable: The server was out of reach for all of `wait`, or for 30 s if that is `None`.
            AuthError: The server refused the user, the password or a permission.
            InvalidArgument: An argument has no meaning; `Error.argument` names it.
            Closed: The manager was closed, maybe meanwhile.
            Forked: It belongs to the parent process.

        >>> lease = locks.acquire("nightly", ttl=10, wait=5)
        >>> lease.release().value
        'released'
        """
        return Lease(self._native.acquire(name, None, ttl, wait, auto_extend, max_hold, label, fair))

    def try_acquire(
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

        >>> lease = connect("memory:").try_acquire("nightly")
        >>> if lease is not None:
        ...     with lease:
        ...         print("ours")
        ours
        """
        native = self._native.try_acquire(name, None, ttl, auto_extend, max_hold, label, fair)
        return None if native is None else Lease(native)

    def locked(
        self,
        name: str,
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
        fair: bool = False,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorates a function to run under a lock whose name is made from its arguments.

        The arguments are those of `lock`; `name` may hold parameters of the function in braces, as `str.format`
        fills them in. The call raises what `acquire` raises, and `LockLost` if the lease was lost meanwhile.

        >>> locks = connect("memory:")
        >>> @locks.locked("invoice:{number}", ttl=10)
        ... def charge(number: int, amount: float = 1.0) -> str:
        ...     return "held" if locks.inspect(f"invoice:{number}") else "free"
        >>> charge(42)
        'held'
        """
        check_name(name)

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            from functools import wraps  # noqa: PLC0415 - of use only here

            if kind_of(function) != "function":
                raise TypeError(f"{function!r} is a {kind_of(function)}: use polylock.asyncio, or a lock inside")
            name_of = namer(name, function)

            @wraps(function)
            def locked(*args: P.args, **kwargs: P.kwargs) -> R:
                resource = name_of(*args, **kwargs)
                with self.acquire(resource, ttl, wait, auto_extend, max_hold, label, fair):
                    return function(*args, **kwargs)

            return locked

        return decorate

    def inspect(self, name: str) -> Holder | None:
        """Who holds `name`, or `None` if it is free.

        Raises:
            Unsupported: The backend cannot tell.
            Unavailable: The server did not answer.
            AuthError: The server refused the user, the password or a permission.
            InvalidArgument: for `name`.
            Closed: The manager was closed.
            Forked: It belongs to the parent process.

        >>> locks.inspect("invoice:42").owner == lease.owner_token
        True
        """
        fields = self._native.inspect(name)
        return None if fields is None else Holder(*fields)

    def list(self, pattern: str = "*", limit: int = 1000) -> builtins.list[Holder]:
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

        >>> [(holder.resource, holder.mode) for holder in locks.list("invoice:*")]
        [('invoice:42', 'exclusive')]
        """
        return [Holder(*fields) for fields in self._native.list(pattern, limit)]

    def break_(self, name: str, fencing_token: int | None = None, *, owner: str | None = None) -> bool:
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

        >>> hung = locks.acquire("nightly")
        >>> locks.break_("nightly", locks.inspect("nightly").fencing_token)
        True
        >>> hung.loss
        'taken'
        """
        return self._native.break_lock(name, fencing_token, owner)

    def on_event(self, callback: Callable[[Event], object]) -> Subscription:
        """Has `callback` called for what happens to this manager's leases from now on.

        It is called in batches, within some 10 ms, on the daemon thread that all listeners share, so it must be
        quick. An exception that it raises goes to `threading.excepthook`, and the rest of that batch is dropped.
        Nobody who acquires or releases waits for it.

        Raises:
            Closed: The manager was closed.
            Forked: It belongs to the parent process.

        >>> import queue
        >>> locks, seen = connect("memory:"), queue.SimpleQueue()
        >>> subscription = locks.on_event(seen.put)
        >>> with locks.lock("report"):
        ...     print(seen.get(timeout=5).kind)
        acquired
        >>> subscription.close()
        """
        check_callback(callback)
        return Subscription(self._native.events(), listeners(), callback)

    def log(self, logger: logging.Logger | None = None) -> Subscription:
        """Writes what happens to `logger`, which is ``logging.getLogger("polylock")`` by default.

        Losses and failed extensions are warnings, the rest is debug. The event's fields are in the record's
        ``polylock``.

        Raises:
            Closed: The manager was closed.
            Forked: It belongs to the parent process.

        >>> locks.log().close()
        """
        import logging  # noqa: PLC0415 - of use only here

        return self.on_event(log_to(logging.getLogger("polylock") if logger is None else logger))

    def close(self) -> None:
        """Ends it: waiters get `Closed`, leases are released, connections let go. Returns when that is done.

        A server that does not answer is given up when its leases must have expired. Closing twice is harmless.

        >>> locks.close()
        """
        self._native.close()

    def __enter__(self) -> LockManager:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def connect(
    url: str | list[str] | tuple[str, ...],
    *,
    prefix: str = "",
    drift_factor: float = 0.01,
    node_timeout: float | None = None,
) -> LockManager:
    """A manager for the locks at `url`. Touches no server and starts no thread: the first use does.

    It belongs to the process that uses it first: made before a fork and not used there, it is each child's own.

    Args:
        url: ``memory:`` or ``memory:NAME`` (this process), ``file:///directory`` (the processes of this host),
            ``redis://[user:password@]host[:port][/database]``, ``rediss://…`` (TLS), ``redis+unix:///path``,
            ``redis+sentinel://host,host/master``, ``redis+cluster://host,host``, a list of the Redis URLs of
            independent servers (Redlock), ``postgres://user:password@host[:port]/database``,
            ``zookeeper://host,host/path``.
        prefix: Put before each name to make the Redis key. Without one, other libraries' locks on the same name
            exclude ours and are excluded by ours.
        drift_factor: How far clocks may run apart, as a part of the ttl: 0 to 0.5.
        node_timeout: Seconds that one server may take to answer. Default: a third of the ttl, between 0.05 and 2;
            with several servers a fifth of the ttl, between 0.05 and 0.5.

    Raises:
        InvalidArgument: `Error.argument` names the one.
        Unsupported: Locks cannot be kept there.

    >>> connect("memory:")
    <polylock.LockManager memory>
    """
    locks = LockManager(native_manager(url, prefix, drift_factor, node_timeout))
    locks._native = cooperative(locks._native)
    return locks
