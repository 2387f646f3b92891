"""What the blocking and the asyncio classes share: everything that does not wait."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NoReturn

from . import _native
from ._errors import LockLost
from ._values import Capabilities, Guarantee, LossReason, Mode, Released

if TYPE_CHECKING:
    from collections.abc import Callable

    # Where a listener waits for its signal, and under which number.
    Listeners = dict[int, Callable[[LossReason], object]]


def cannot_be_pickled(value: object) -> NoReturn:
    """Refuses: what is held by this process cannot be held by another one as well."""
    raise TypeError(f"cannot pickle {type(value).__qualname__!r} object: it belongs to this process")


class LeaseBase:
    """A held lock, apart from what waits."""

    __slots__ = ("__weakref__", "_listeners", "_native")

    def __init__(self, native: _native.Lease) -> None:
        self._native = native
        self._listeners: list[tuple[Listeners, int]] | None = None

    @property
    def resource(self) -> str:
        """What is locked; the first of several."""
        return self._native.resource

    @property
    def resources(self) -> tuple[str, ...]:
        """All that is locked, sorted."""
        return tuple(self._native.resources)

    @property
    def mode(self) -> Mode:
        """How it is held: ``"exclusive"``, ``"shared"`` or ``"permit"``."""
        return self._native.mode

    @property
    def owner_token(self) -> str:
        """40 hex digits that prove ownership to the server, new for each attempt."""
        return self._native.owner_token

    @property
    def fencing_token(self) -> int:
        """Greater than every earlier exclusive holder's of this resource, and below 2**53.

        Hand it to what the lock protects, and let that refuse a smaller one than it has seen.
        """
        return self._native.fencing_token

    @property
    def deadline(self) -> float:
        """Until when the holder may act, in Unix seconds; in the past once the lease was lost or released."""
        return self._native.deadline

    @property
    def remaining(self) -> float:
        """For how many seconds the holder may still act; 0.0 once the lease was lost or released.

        Asks the clock, no server.
        """
        return self._native.remaining

    @property
    def is_held(self) -> bool:
        """Whether the holder may act now. Asks the clock, no server."""
        return self._native.is_held

    @property
    def lost(self) -> bool:
        """Whether the lease was lost; stays false after a release. Asks the clock, no server."""
        return self._native.loss is not None

    @property
    def loss(self) -> LossReason | None:
        """Why the lease was lost: ``"expired"``, ``"taken"``, ``"max_hold"``, or `None` if it was not."""
        return self._native.loss

    def __repr__(self) -> str:
        native = self._native
        state = f"{native.remaining:.3f} s left" if native.is_held else native.loss or "not held"
        return f"<{type(self).__module__}.Lease {native.resource!r} token={native.fencing_token} {state}>"

    def __reduce__(self) -> NoReturn:
        cannot_be_pickled(self)

    def __del__(self) -> None:
        native = getattr(self, "_native", None)
        if native is None or native.loss is not None:
            return  # a listener of a lost lease is still to be called
        self._forget_listeners()
        if native.is_held:
            warnings.warn(f"unreleased {self!r}", ResourceWarning, stacklevel=2, source=self)
            native.release_soon()

    def _forget_listeners(self) -> None:
        # Without a lock: the collector may come here in the middle of anything.
        listeners, self._listeners = self._listeners, None
        for callbacks, number in listeners or ():
            callbacks.pop(number, None)

    def _released(self, outcome: str) -> Released:
        released = Released.NOT_HELD if outcome == "ended_before" else Released(outcome)
        if released is not Released.NOT_HELD or self._native.loss is None:
            self._forget_listeners()
        return released

    def _loss_at_exit(self, loss: LossReason | None, outcome: str) -> LockLost | None:
        """The error for leaving a `with`: the lease was lost before its release, or was found to be by that."""
        if loss is None and outcome == "not_held":
            loss = self._native.loss or "taken"
        if loss is None:
            return None
        why = {
            "expired": "its deadline passed before it was released",
            "taken": "somebody else took or deleted it before it was released",
            "max_hold": "it was held for longer than max_hold",
        }[loss]
        return LockLost(f"{self.resource!r}: {why}", resource=self.resource)


class ManagerBase:
    """A manager, apart from what waits."""

    __slots__ = ("__weakref__", "_native")

    def __init__(self, native: _native.Manager) -> None:
        self._native = native

    @property
    def capabilities(self) -> Capabilities:
        """What the backend can do and promise. Asks no server."""
        guarantee, *can = self._native.capabilities()
        return Capabilities(Guarantee(guarantee), *can)

    def waiting(self, name: str) -> int:
        """How many wait for `name` through this manager. Asks no server.

        Raises:
            InvalidArgument: for `name`.
            Closed: The manager was closed.
            Forked: It belongs to the parent process.
        """
        return self._native.waiting(name)

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{self._native!r}>"

    def __reduce__(self) -> NoReturn:
        cannot_be_pickled(self)


def native_manager(
    url: str | list[str] | tuple[str, ...], prefix: str, drift_factor: float, node_timeout: float | None
) -> _native.Manager:
    """The native manager for the arguments of `connect`."""
    urls = list(url) if isinstance(url, (list, tuple)) else [url]
    return _native.Manager(urls, prefix, drift_factor, node_timeout)
