"""What the blocking and the asyncio classes share: everything that does not wait."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeVar

from . import _native, _process
from ._metrics import Metric, metrics_of
from ._native import LeaseEnd, LockEnd
from ._values import Capabilities, Guarantee, LossReason, Mode, Released

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    # Where a listener waits for its signal, and under which number.
    Listeners = dict[int, Callable[[Any], object]]


def cannot_be_pickled(value: object) -> NoReturn:
    """Refuses: what is held by this process cannot be held by another one as well."""
    raise TypeError(f"cannot pickle {type(value).__qualname__!r} object: it belongs to this process")


def publish(names: dict[str, Any], module: str) -> None:
    """Has what `module` offers say that it is from there: where users find it, in messages and documentation."""
    for name in names["__all__"]:
        value = names[name]
        home = getattr(value, "__module__", None)
        if home is not None and home.startswith(f"{module}."):
            value.__module__ = module


_RELEASED = {outcome.value: outcome for outcome in Released} | {"ended_before": Released.NOT_HELD}


class LeaseBase(LeaseEnd):
    """A held lock, apart from what waits."""

    __slots__ = ("__weakref__", "_listeners", "_native", "_over")

    def __init__(self, native: _native.Lease | None = None) -> None:
        if not isinstance(native, _native.Lease):
            raise TypeError("a Lease is what acquiring gives: polylock.connect(url).acquire(name)")
        self._listeners: list[tuple[Listeners, int]] | None = None
        self._native = native
        self._over = False  # last: an interrupt may come before it

    @property
    def resource(self) -> str:
        """What is locked; the first of several.

        >>> lease.resource
        'invoice:42'
        """
        return self._native.resource

    @property
    def resources(self) -> tuple[str, ...]:
        """All that is locked, sorted.

        >>> lease.resources
        ('invoice:42',)
        """
        return tuple(self._native.resources)

    @property
    def mode(self) -> Mode:
        """How it is held: ``"exclusive"``, ``"shared"`` or ``"permit"``.

        >>> lease.mode
        'exclusive'
        """
        return self._native.mode

    @property
    def owner_token(self) -> str:
        """40 hex digits that prove ownership to the server, new for each attempt.

        >>> len(lease.owner_token)
        40
        """
        return self._native.owner_token

    @property
    def fencing_token(self) -> int:
        """Greater than every earlier exclusive holder's of this resource, and below 2**53.

        Hand it to what the lock protects, and let that refuse a smaller one than it has seen.

        >>> 0 < lease.fencing_token < 2**53
        True
        """
        return self._native.fencing_token

    @property
    def deadline(self) -> float:
        """Until when the holder may act, in Unix seconds; in the past once the lease was lost or released.

        >>> lease.deadline > time.time()
        True
        """
        return self._native.deadline

    @property
    def remaining(self) -> float:
        """For how many seconds the holder may still act; 0.0 once the lease was lost or released.

        Asks the clock, no server.

        >>> 0 < lease.remaining <= 10
        True
        """
        return self._native.remaining

    @property
    def is_held(self) -> bool:
        """Whether the holder may act now. Asks the clock, no server.

        >>> lease.is_held
        True
        """
        return self._native.is_held

    @property
    def lost(self) -> bool:
        """Whether the lease was lost; stays false after a release. Asks the clock, no server.

        >>> lease.lost
        False
        """
        return self._native.loss is not None

    @property
    def loss(self) -> LossReason | None:
        """Why the lease was lost: ``"expired"``, ``"taken"``, ``"max_hold"``, or `None` if it was not.

        >>> lease.loss is None
        True
        """
        return self._native.loss

    def __repr__(self) -> str:
        native = self._native
        state = f"{native.remaining:.3f} s left" if native.is_held else native.loss or "not held"
        return f"<{type(self).__module__}.Lease {native.resource!r} token={native.fencing_token} {state}>"

    def __reduce__(self) -> NoReturn:
        cannot_be_pickled(self)

    def __del__(self) -> None:
        if getattr(self, "_over", True):
            return
        native = self._native
        if native.loss is not None:
            return  # its listeners are still to be called
        self._forget_listeners()
        if native.is_held:
            message = f"unreleased {self!r}"
            native.release_soon()  # first: the warning may be an error
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)

    def _forget_listeners(self) -> None:
        # Without a lock: the collector may come here in the middle of anything.
        listeners, self._listeners = self._listeners, None
        for callbacks, number in listeners or ():
            callbacks.pop(number, None)

    def _released(self, outcome: str) -> Released:
        self._over = True
        released = _RELEASED[outcome]
        if self._listeners is not None and (released is not Released.NOT_HELD or self._native.loss is None):
            self._forget_listeners()
        return released


AnyLease = TypeVar("AnyLease", bound=LeaseBase)


class LockBase(Generic[AnyLease], LockEnd):
    """What to acquire, and how, and what was acquired by it."""

    __slots__ = (
        "__weakref__",
        "_auto_extend",
        "_fair",
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
        native: Any = None,
        name: str | tuple[str, ...] = "",
        mode: Literal["shared"] | int | None = None,
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
        fair: bool = False,
    ) -> None:
        if not hasattr(native, "try_acquire"):
            raise TypeError("a Lock is made by a LockManager: polylock.connect(url).lock(name)")
        self._native: _native.Manager = native
        self.name: str | tuple[str, ...] = name
        self._mode: Literal["shared"] | int | None = mode
        self._ttl = ttl
        self._wait = wait
        self._auto_extend = auto_extend
        self._max_hold = max_hold
        self._label = label
        self._fair = fair
        # Who has acquired what, the newest last, and whether by `with`. Each step that changes it is a single one, so
        # several threads may.
        self._held: dict[int, tuple[Hashable, AnyLease, bool]] = {}

    def _keep(self, user: Hashable, lease: AnyLease) -> AnyLease:
        for key, (_, other, entered) in list(self._held.items()):
            # Released by itself, not by this object.
            if not (entered or other.is_held or other.lost):
                self._held.pop(key, None)
        self._held[id(lease)] = user, lease, False
        return lease

    def _take(self, user: Hashable) -> AnyLease | None:
        """The newest lease of `user`. That of a `with` stays, to be found at its end."""
        for key, (owner, lease, entered) in reversed(list(self._held.items())):
            if owner is user:
                if not entered:
                    self._held.pop(key, None)
                return lease
        return None

    def _enter(self, user: Hashable, lease: AnyLease) -> AnyLease:
        self._held[id(lease)] = user, lease, True
        return lease

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.Lock {self.name!r}>"

    def __reduce__(self) -> NoReturn:
        cannot_be_pickled(self)


AnyLock = TypeVar("AnyLock", bound=LockBase[Any])


class ManagerBase(Generic[AnyLock]):
    """A manager, apart from what waits."""

    __slots__ = ("__weakref__", "_native")

    _lock: type[AnyLock]

    def __init__(self, native: _native.Manager | None = None) -> None:
        if not isinstance(native, _native.Manager):
            raise TypeError("a LockManager is made by connect(url)")
        self._native = native

    def lock(
        self,
        name: str,
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
        fair: bool = False,
    ) -> AnyLock:
        """A lock to be used as a context manager. Nothing is sent until it is acquired.

        The examples are of blocking code: in `polylock.asyncio` it is ``async with``, and what waits is awaited.

        Args:
            name: What to lock: UTF-8, 1 to 1,024 bytes, no NUL.
            ttl: Seconds that the lease lasts without renewal, and so the time after which a dead holder frees it.
            wait: Seconds that acquiring may take; `None` or infinity: as long as somebody holds it; 0: one try.
            auto_extend: Whether the engine renews the lease until it is released.
            max_hold: Seconds after which no renewal begins any more, so that a hung holder cannot hold for ever.
            label: What `Holder.label` will say: at most 256 bytes.
            fair: Whether those who ask for this are served in the order in which they came, also those of other
                processes. Whoever does not ask for it may still come first. A waiter that died is passed over a
                second later. Where the backend cannot (`Capabilities.fair`), acquiring raises `Unsupported`.

        >>> with locks.lock("invoice:43", ttl=10, wait=5) as lease:
        ...     lease.is_held
        True
        """
        return self._lock(self._native, name, None, ttl, wait, auto_extend, max_hold, label, fair)

    def shared(
        self,
        name: str,
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
    ) -> AnyLock:
        """A lock that others may hold shared at the same time, but nobody exclusively.

        The arguments are those of `lock`. Where the backend cannot share, acquiring raises `Unsupported`.

        >>> with locks.shared("catalogue"), locks.shared("catalogue"):
        ...     locks.try_acquire("catalogue") is None
        True
        """
        return self._lock(self._native, name, "shared", ttl, wait, auto_extend, max_hold, label)

    def semaphore(
        self,
        name: str,
        of: int,
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
    ) -> AnyLock:
        """One of `of` permits, 1 to 65,535. All users of a semaphore must name the same number.

        The other arguments are those of `lock`. Where the backend has no semaphores, acquiring raises `Unsupported`;
        where `name` is in use as another kind of lock or with another number, `Conflict`.

        >>> gateway = locks.semaphore("mail-gateway", 2)
        >>> with gateway, gateway:
        ...     gateway.try_acquire() is None
        True
        """
        if not isinstance(of, int) or isinstance(of, bool):
            raise TypeError(f"of must be int, not {type(of).__name__}")
        return self._lock(self._native, name, of, ttl, wait, auto_extend, max_hold, label)

    def lock_all(
        self,
        names: list[str] | tuple[str, ...],
        ttl: float = 30.0,
        wait: float | None = None,
        auto_extend: bool = True,
        max_hold: float | None = None,
        label: str | None = None,
    ) -> AnyLock:
        """All of `names`, 1 to 64, or none: whoever takes some of them in another order is no danger.

        The other arguments are those of `lock`. Where the backend cannot do that, acquiring raises `Unsupported`.

        >>> with locks.lock_all(["account:2", "account:1"]) as lease:
        ...     lease.resources
        ('account:1', 'account:2')
        """
        if not isinstance(names, (list, tuple)):
            raise TypeError(f"names must be a list or a tuple of str, not {type(names).__name__}")
        return self._lock(self._native, tuple(names), None, ttl, wait, auto_extend, max_hold, label)

    @property
    def capabilities(self) -> Capabilities:
        """What the backend can do and promise. Asks no server.

        >>> locks.capabilities.fencing
        True
        """
        guarantee, *can = self._native.capabilities()
        return Capabilities(Guarantee(guarantee), *can)

    def metrics(self) -> list[Metric]:
        """What was done through this manager since it was made. Asks no server; also works when it is closed.

        For Prometheus there are `polylock.prometheus.Collector` and `metrics_text`.

        Raises:
            Forked: It belongs to the parent process.

        >>> acquired = next(m for m in locks.metrics() if m.name == "polylock.acquire.duration").points[0]
        >>> acquired.labels, acquired.value.number > 0
        ({'system': 'memory', 'outcome': 'acquired'}, True)
        """
        return metrics_of(self._native.metrics())

    def metrics_text(self) -> str:
        """The same in the text format of Prometheus (``text/plain; version=0.0.4``).

        Raises:
            Forked: It belongs to the parent process.

        >>> "polylock_lost_total" in locks.metrics_text()
        True
        """
        return self._native.metrics_text()

    def waiting(self, name: str) -> int:
        """How many wait for `name` through this manager. Asks no server.

        Raises:
            InvalidArgument: for `name`.
            Closed: The manager was closed.
            Forked: It belongs to the parent process.

        >>> locks.waiting("invoice:42")
        0
        """
        return self._native.waiting(name)

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{self._native!r}>"

    def __reduce__(self) -> NoReturn:
        cannot_be_pickled(self)


def native_manager(
    url: str | list[str] | tuple[str, ...],
    prefix: str = "",
    drift_factor: float = 0.01,
    node_timeout: float | None = None,
    patience: tuple[int, int, float] | None = None,
) -> _native.Manager:
    """The native manager for the arguments of `connect`.

    With `patience` acquiring fails, whatever the wait, when the server has been out of reach for so many more tries,
    or for the second number of them if it says nothing and the lock is waited for, and for so many seconds; at once
    when it answers by an error that will not be over by itself.
    """
    _process.enroll_child()
    urls = list(url) if isinstance(url, (list, tuple)) else [url]
    return _native.Manager(urls, prefix, drift_factor, node_timeout, patience)
