"""OpenTelemetry: metrics and spans, by the real SDK."""

from __future__ import annotations

import asyncio
import gc
import os
import threading

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, get_current_span

import polylock
import polylock.asyncio
from polylock.opentelemetry import observe, traced


class Metrics:
    """What a reader gets."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def points(self, name: str) -> dict[tuple[tuple[str, object], ...], float]:
        data = self.reader.get_metrics_data()
        found: dict[tuple[tuple[str, object], ...], float] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                assert (scope.scope.name, scope.scope.version) == ("polylock", polylock.__version__)
                for metric in scope.metrics:
                    for point in metric.data.data_points if metric.name == name else ():
                        assert isinstance(point, NumberDataPoint)
                        found[tuple(sorted((point.attributes or {}).items()))] = point.value
        return found


class Spans:
    """What an exporter gets."""

    def __init__(self) -> None:
        self.provider = TracerProvider()
        self.exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def take(self) -> tuple[ReadableSpan, ...]:
        taken = self.exporter.get_finished_spans()
        self.exporter.clear()
        return taken


@pytest.fixture
def spans() -> Spans:
    return Spans()


def test_metrics_are_read_when_the_reader_collects(memory: str) -> None:
    metrics = Metrics()
    locks = polylock.connect(memory)
    observe(locks, meter_provider=metrics.provider)
    lease = locks.acquire("r")
    system = ("system", "memory")
    assert metrics.points("polylock.held") == {(system,): 1}
    lease.release()
    locks.acquire("r").release()
    assert metrics.points("polylock.held") == {(system,): 0}
    assert metrics.points("polylock.attempts")[("answer", "granted"), system] == 2
    acquired = (("outcome", "acquired"), system)
    assert metrics.points("polylock.acquire.duration.count")[acquired] == 2
    assert metrics.points("polylock.acquire.duration.sum")[acquired] > 0
    buckets = metrics.points("polylock.acquire.duration.bucket")
    assert buckets[(("le", "+Inf"), *acquired)] == 2
    del locks, lease
    gc.collect()
    assert metrics.points("polylock.held") == {}


def test_several_managers_of_both_colours_and_a_fork(memory: str) -> None:
    metrics = Metrics()
    locks, others = polylock.connect(memory), polylock.asyncio.connect(memory)
    observe(meter_provider=metrics.provider, orders=locks, mail=others)
    with locks.lock("r"):
        held = metrics.points("polylock.held")
        assert {dict(labels)["manager"]: value for labels, value in held.items()} == {"orders": 1, "mail": 0}
        # In the child the parent's managers give nothing, and fail nothing.
        child = os.fork()
        if child == 0:
            os._exit(0 if metrics.points("polylock.held") == {} else 1)
        assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(TypeError, match="one manager"):
        observe()
    with pytest.raises(TypeError, match="one manager"):
        observe(locks, mail=others)


def test_spans_around_acquire_and_hold(memory: str, spans: Spans) -> None:
    locks = polylock.connect(memory)
    tracer = spans.provider.get_tracer("test")
    with tracer.start_as_current_span("request"):
        with traced(locks.lock("r"), tracer_provider=spans.provider) as lease:
            tracer.start_span("work").end()
        assert not lease.is_held
    acquire, work, hold, request = spans.take()
    assert [acquire.name, hold.name] == ["polylock.acquire", "polylock.hold"]
    assert acquire.parent and hold.parent and work.parent and request.context and hold.context
    assert acquire.parent.span_id == hold.parent.span_id == request.context.span_id
    assert work.parent.span_id == hold.context.span_id
    told = {"polylock.resource": "r", "polylock.mode": "exclusive", "polylock.fencing_token": lease.fencing_token}
    assert dict(acquire.attributes or {}) == dict(hold.attributes or {}) == told


def test_errors_are_in_the_span_that_they_end(memory: str, spans: Spans) -> None:
    locks = polylock.connect(memory)
    again = traced(locks.lock("r", wait=0), tracer_provider=spans.provider)
    with locks.lock("r"), pytest.raises(polylock.AcquireTimeout), again:
        raise AssertionError
    (acquire,) = spans.take()
    assert (acquire.name, acquire.status.status_code) == ("polylock.acquire", StatusCode.ERROR)
    assert dict(acquire.attributes or {}) == {"polylock.resource": "r"}

    over = threading.Event()
    short = traced(locks.lock("r", ttl=0.1, auto_extend=False), tracer_provider=spans.provider)
    with pytest.raises(polylock.LockLost), short as lease:
        lease.on_lost(lambda _: over.set())
        assert over.wait(60)
    hold = spans.take()[-1]
    assert (hold.name, hold.status.status_code) == ("polylock.hold", StatusCode.ERROR)
    assert (hold.attributes or {})["polylock.loss"] == "expired"

    with pytest.raises(ZeroDivisionError), traced(locks.lock("r"), tracer_provider=spans.provider):
        raise ZeroDivisionError
    assert spans.take()[-1].status.status_code is StatusCode.ERROR
    assert locks.inspect("r") is None


def test_spans_on_a_loop(url: str, name: str, spans: Spans) -> None:
    locks = polylock.asyncio.connect(url)

    async def one() -> None:
        async with traced(locks.lock(name), tracer_provider=spans.provider):
            assert get_current_span().is_recording()
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(one(), one())
        task = asyncio.create_task(one())
        async with locks.lock(name):
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.wait_for(one(), 60)
        await locks.close()

    asyncio.run(main())
    names = [span.name for span in spans.take()]
    assert names.count("polylock.hold") == 3
    assert names.count("polylock.acquire") == 4
