"""What managers count and tell, as plain values, and who is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from ._values import LossReason, Mode

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from . import _native

EventKind = Literal["acquired", "contended", "extended", "extension_failed", "lost", "released"]
"""What can happen: `contended` comes once for each acquisition that finds somebody else holding."""


class Event(NamedTuple):
    """Something that happened to a lease, or on the way to one.

    >>> locks.on_event(lambda event: print(event.kind, event.resources)).close()
    """

    kind: EventKind
    """What happened."""
    at: float
    """When, in Unix seconds."""
    resources: tuple[str, ...]
    """What it is about."""
    mode: Mode
    """How it is, or was to be, held."""
    fencing_token: int | None
    """Of the lease, if there is one."""
    duration: float | None
    """Seconds that acquiring took, or that the lease has been held."""
    reason: LossReason | None
    """Why it was lost."""
    error: str | None
    """Why it was not extended."""


class Histogram(NamedTuple):
    """Counts by size.

    >>> acquired = next(m for m in locks.metrics() if m.name == "polylock.acquire.duration").points[0].value
    >>> acquired.number, len(acquired.counts) - len(acquired.bounds)
    (1, 1)
    """

    bounds: tuple[float, ...]
    """The upper bounds of all buckets but the last, which has none."""
    counts: tuple[int, ...]
    """How many fell into each bucket, and into no smaller one: one more than there are bounds."""
    sum: float
    """Of all that was measured."""
    number: int
    """How many were measured."""


class Point(NamedTuple):
    """One value of a metric.

    >>> next(m for m in locks.metrics() if m.name == "polylock.held").points
    [Point(labels={'system': 'memory'}, value=1.0)]
    """

    labels: dict[str, str]
    """`system` (the backend) in any case, and what the metric is split by."""
    value: float | Histogram
    """A number, or counts by size."""


class Metric(NamedTuple):
    """One thing that is measured.

    >>> [metric.name for metric in locks.metrics()][:2]
    ['polylock.acquire.duration', 'polylock.wait.duration']
    """

    name: str
    """As in `polylock.acquire.duration`."""
    help: str
    """What it is, in a sentence."""
    unit: str
    """`s` for seconds; else empty."""
    kind: Literal["counter", "gauge", "histogram"]
    """How its values behave."""
    points: list[Point]
    """Its values, by labels."""


def metrics_of(fields: list[Any]) -> list[Metric]:
    """From what the engine gives."""
    return [
        Metric(name, help_, unit, kind, [Point(labels, _value(number, of)) for labels, number, of in points])
        for name, help_, unit, kind, points in fields
    ]


def _value(number: float | None, of: tuple[list[float], list[int], float, int] | None) -> float | Histogram:
    if of is None:
        return 0.0 if number is None else number
    bounds, counts, total, count = of
    return Histogram(tuple(bounds), tuple(counts), total, count)


class _Host(Protocol):
    """What hands out what the engine finishes: the bridge of a loop, or the listeners of blocking code."""

    queue: _native.Queue
    callbacks: dict[int, Callable[[Any], object]]


class Subscription:
    """Has a callback called for each event, until it is closed or the manager is.

    >>> seen = []
    >>> subscription = locks.on_event(seen.append)
    >>> subscription.close()
    """

    __slots__ = ("_callback", "_events", "_host")

    def __init__(self, events: _native.Events, host: _Host, callback: Callable[[Event], object]) -> None:
        self._events = events
        self._host = host
        self._callback = callback
        self._next()

    @property
    def missed(self) -> int:
        """How many events were dropped since this was last asked, because the callback was too slow.

        >>> locks.on_event(print).missed
        0
        """
        return self._events.missed()

    def close(self) -> None:
        """Ends it, after what has happened so far. Closing twice is harmless.

        >>> locks.on_event(print).close()
        """
        self._events.close()

    def _next(self) -> None:
        answer = self._events.take_start(self._host.queue)
        if isinstance(answer, int):
            self._host.callbacks[answer] = self._batch
        else:
            self._batch(answer)

    def _batch(self, events: Any) -> None:
        if not isinstance(events, list):
            return  # it has ended
        # First, so that an exception of the callback ends this batch alone.
        self._next()
        for kind, at, resources, *rest in events:
            self._callback(Event(kind, at, tuple(resources), *rest))


def log_to(logger: Any) -> Callable[[Event], None]:
    """A callback that writes events to `logger`: losses and failed extensions as warnings, the rest as debug."""
    if not hasattr(logger, "isEnabledFor"):
        raise TypeError(f"logger must be a logging.Logger, not {type(logger).__name__}")

    def write(event: Event) -> None:
        level = 30 if event.kind in ("lost", "extension_failed") else 10
        if logger.isEnabledFor(level):
            names = ", ".join(event.resources)
            why = event.reason or event.error
            took = "" if event.duration is None else f" after {event.duration:.3f} s"
            logger.log(
                level,
                "%s: %s%s%s",
                names,
                event.kind.replace("_", " "),
                took,
                "" if why is None else f": {why}",
                extra={"polylock": event._asdict()},
            )

    return write
