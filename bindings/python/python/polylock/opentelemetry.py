"""Metrics and spans for OpenTelemetry.

    import polylock, polylock.opentelemetry

    locks = polylock.connect("redis://localhost:6379")
    polylock.opentelemetry.observe(locks)
    with polylock.opentelemetry.traced(locks.lock("invoice:42", ttl=10)) as lease:
        charge(lease.fencing_token)

Needs the package `opentelemetry-api`; `pip install polylock[opentelemetry]` brings it. Where all goes is for your SDK
to say.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, overload
from weakref import ref

from opentelemetry import trace
from opentelemetry.metrics import Observation, get_meter

from ._blocking import Lock
from ._errors import Forked
from ._metrics import Histogram
from ._native import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider
    from opentelemetry.util.types import AttributeValue

    from . import asyncio
    from ._base import LeaseBase, ManagerBase
    from ._blocking import Lease
    from ._metrics import Metric, Point

    Read = Callable[[Point], Iterable[tuple[float, dict[str, str]]]]

__all__ = ["observe", "traced"]


def observe(
    locks: ManagerBase[Any] | None = None,
    /,
    *,
    meter_provider: MeterProvider | None = None,
    **named: ManagerBase[Any],
) -> None:
    """Has the metrics of a manager, or of several by name, read whenever a reader of the SDK collects.

    Several managers are told apart by the attribute ``manager``: ``observe(orders=locks, mail=others)``. Call it once
    for all. Both blocking and asyncio managers will do. One that was collected, or was inherited from the parent of a
    fork, gives nothing.

    Counters and gauges have the names of `metrics()`. What is counted by size there is given as three counters, since
    OpenTelemetry has no histogram that is observed: ``NAME.count``, ``NAME.sum`` (in seconds) and ``NAME.bucket``,
    whose attribute ``le`` is the upper bound, as Prometheus has it.
    """
    if (locks is None) == (not named):
        raise TypeError("give one manager, or several by name")
    managers = {"": locks} if locks is not None else named
    weakly = [({"manager": name} if name else {}, ref(each)) for name, each in managers.items() if each is not None]
    meter = get_meter("polylock", __version__, meter_provider)
    for metric in next(iter(managers.values())).metrics():
        _instruments(meter, metric, weakly)


def _instruments(meter: Meter, metric: Metric, managers: list[tuple[dict[str, str], ref[ManagerBase[Any]]]]) -> None:
    def callback(read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observations(_: CallbackOptions) -> Iterable[Observation]:
            for more, manager in managers:
                for point in _points(manager(), metric.name):
                    for value, attributes in read(point):
                        yield Observation(value, attributes | more)

        return observations

    if metric.kind == "histogram":
        for suffix, unit, read in (("count", "1", _count), ("sum", metric.unit, _sum), ("bucket", "1", _buckets)):
            meter.create_observable_counter(f"{metric.name}.{suffix}", [callback(read)], unit, metric.help)
    else:
        counter = metric.kind == "counter"
        create = meter.create_observable_counter if counter else meter.create_observable_gauge
        create(metric.name, [callback(_number)], metric.unit or "1", metric.help)


def _points(locks: ManagerBase[Any] | None, name: str) -> Iterable[Point]:
    if locks is None:
        return ()
    try:
        return [point for metric in locks.metrics() if metric.name == name for point in metric.points]
    except Forked:
        return ()


def _number(point: Point) -> Iterable[tuple[float, dict[str, str]]]:
    if not isinstance(point.value, Histogram):
        yield point.value, point.labels


def _count(point: Point) -> Iterable[tuple[float, dict[str, str]]]:
    if isinstance(point.value, Histogram):
        yield point.value.number, point.labels


def _sum(point: Point) -> Iterable[tuple[float, dict[str, str]]]:
    if isinstance(point.value, Histogram):
        yield point.value.sum, point.labels


def _buckets(point: Point) -> Iterable[tuple[float, dict[str, str]]]:
    if isinstance(point.value, Histogram):
        so_far = 0
        bounds = [f"{bound:g}" for bound in point.value.bounds]
        for bound, count in zip([*bounds, "+Inf"], point.value.counts, strict=True):
            so_far += count
            yield so_far, point.labels | {"le": bound}


@overload
def traced(lock: Lock, *, tracer_provider: TracerProvider | None = None) -> AbstractContextManager[Lease]: ...
@overload
def traced(
    lock: asyncio.Lock, *, tracer_provider: TracerProvider | None = None
) -> AbstractAsyncContextManager[asyncio.Lease]: ...
def traced(
    lock: Lock | asyncio.Lock, *, tracer_provider: TracerProvider | None = None
) -> AbstractContextManager[Lease] | AbstractAsyncContextManager[asyncio.Lease]:
    """`lock` as a context manager that makes two spans: ``polylock.acquire``, then ``polylock.hold`` around the body.

    They are children of the current span, and the latter is the current one in the body. An error, also `LockLost` at
    the end, is in the span that it ends. To be used once.
    """
    tracer = trace.get_tracer("polylock", __version__, tracer_provider)
    return _blocking(lock, tracer) if isinstance(lock, Lock) else _on_loop(lock, tracer)


@contextmanager
def _blocking(lock: Lock, tracer: Tracer) -> Iterator[Lease]:
    with tracer.start_as_current_span("polylock.acquire", kind=trace.SpanKind.CLIENT) as span:
        span.set_attribute("polylock.resource", _name(lock.name))
        lease = lock.__enter__()
        span.set_attributes(_described(lease))
    with tracer.start_as_current_span("polylock.hold", attributes=_described(lease)) as span:
        try:
            with ExitStack() as stack:
                stack.push(lock)  # it is entered already
                yield lease
        finally:
            _tell_loss(span, lease)


@asynccontextmanager
async def _on_loop(lock: asyncio.Lock, tracer: Tracer) -> AsyncIterator[asyncio.Lease]:
    with tracer.start_as_current_span("polylock.acquire", kind=trace.SpanKind.CLIENT) as span:
        span.set_attribute("polylock.resource", _name(lock.name))
        lease = await lock.__aenter__()
        span.set_attributes(_described(lease))
    with tracer.start_as_current_span("polylock.hold", attributes=_described(lease)) as span:
        try:
            async with AsyncExitStack() as stack:
                stack.push_async_exit(lock)  # it is entered already
                yield lease
        finally:
            _tell_loss(span, lease)


def _name(name: str | tuple[str, ...]) -> AttributeValue:
    return name if isinstance(name, str) else list(name)


def _described(lease: LeaseBase) -> dict[str, AttributeValue]:
    return {
        "polylock.resource": lease.resource if len(lease.resources) == 1 else lease.resources,
        "polylock.mode": lease.mode,
        "polylock.fencing_token": lease.fencing_token,
    }


def _tell_loss(span: trace.Span, lease: LeaseBase) -> None:
    if lease.loss is not None:
        span.set_attribute("polylock.loss", lease.loss)
