"""Listing, breaking, metrics and events, in both colours."""

from __future__ import annotations

import asyncio
import logging
import queue
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import polylock
import polylock.asyncio
import polylock.prometheus
from conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

URL = "memory:"


def value(metrics: Iterable[polylock.Metric], name: str, **labels: str) -> float:
    total = 0.0
    for metric in metrics:
        for point in metric.points if metric.name == name else ():
            if labels.items() <= point.labels.items():
                total += point.value.number if isinstance(point.value, polylock.Histogram) else point.value
    return total


def test_lists_and_breaks(url: str, name: str) -> None:
    with polylock.connect(url) as locks, polylock.connect(url) as others:
        if not locks.capabilities.listing:
            with pytest.raises(polylock.Unsupported):
                locks.list()
            return
        lease = locks.acquire(name, label="here")
        (holder,) = others.list(name + "*") if url != URL else locks.list(name + "*")
        assert (holder.resource, holder.mode, holder.label) == (name, "exclusive", "here")
        assert (holder.owner, holder.fencing_token) == (lease.owner_token, lease.fencing_token)
        assert others.list("no such name") == []
        if not locks.capabilities.breaking:
            with pytest.raises(polylock.Unsupported):
                locks.break_(name, 1)
            return
        assert locks.break_(name, lease.fencing_token - 1) is False
        assert locks.break_(name, owner="0" * 40) is False
        assert lease.is_held
        lost: queue.SimpleQueue[str] = queue.SimpleQueue()
        lease.on_lost(lost.put)
        assert locks.break_(name, lease.fencing_token) is True
        assert lost.get(timeout=10) == "taken"
        other = locks.acquire(name)
        assert locks.break_(name, owner=other.owner_token) is True
        assert locks.inspect(name) is None


def test_lists_and_breaks_on_a_loop(url: str, name: str) -> None:
    async def main() -> None:
        async with polylock.asyncio.connect(url) as locks:
            if not locks.capabilities.breaking:
                return
            lease = await locks.acquire(name)
            assert [holder.resource for holder in await locks.list(name + "*", limit=5)] == [name]
            assert await locks.break_(name, lease.fencing_token + 1) is False
            assert await locks.break_(name, lease.fencing_token) is True
            assert lease.loss == "taken"
            assert await locks.list(name + "*") == []

    asyncio.run(main())


def test_refuses_bad_arguments() -> None:
    locks = polylock.connect(URL)
    for pattern, limit, argument in [
        ("", 1, "pattern"),
        ("*", 0, "limit"),
        ("*", -1, "limit"),
        ("*", 2**70, "limit"),
    ]:
        with pytest.raises(polylock.InvalidArgument) as refused:
            locks.list(pattern, limit)
        assert refused.value.argument == argument
    with pytest.raises(polylock.InvalidArgument, match="fencing_token"):
        locks.break_("r", -1)
    with pytest.raises(polylock.InvalidArgument, match="owner"):
        locks.break_("r", owner="")
    for arguments in [{}, {"fencing_token": 1, "owner": "x"}, {"fencing_token": "1"}, {"owner": 1}]:
        with pytest.raises(TypeError):
            locks.break_("r", **arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        locks.on_event(None)  # type: ignore[arg-type]


def test_counts(url: str, name: str) -> None:
    with polylock.connect(url) as locks:
        with locks.lock(name):
            assert value(locks.metrics(), "polylock.held") == 1
            assert locks.try_acquire(name) is None
        if url.startswith("redis"):
            # A majority was enough for the lease; the others may answer for the first time a moment later.
            wait_until(lambda: value(locks.metrics(), "polylock.node.up") == len(url.split(",")))
        metrics = locks.metrics()
    assert value(metrics, "polylock.acquire.duration", outcome="acquired") == 1
    assert value(metrics, "polylock.acquire.duration", outcome="contended") == 1
    assert value(metrics, "polylock.held") == 0
    if url.startswith("redis"):
        assert value(metrics, "polylock.node.requests") >= 3


def test_prometheus_reads_it() -> None:
    locks, others = polylock.connect(URL), polylock.asyncio.connect(URL)
    with locks.lock("r"):
        pass
    registry = CollectorRegistry()
    registry.register(polylock.prometheus.Collector(mine=locks, theirs=others))
    mine = {"system": "memory", "outcome": "acquired", "manager": "mine"}
    assert registry.get_sample_value("polylock_acquire_duration_seconds_count", mine) == 1
    assert registry.get_sample_value("polylock_acquire_duration_seconds_bucket", mine | {"le": "+Inf"}) == 1
    assert registry.get_sample_value("polylock_acquire_duration_seconds_count", mine | {"manager": "theirs"}) == 0
    lost = {"system": "memory", "reason": "taken", "manager": "mine"}
    assert registry.get_sample_value("polylock_lost_total", lost) == 0
    with pytest.raises(TypeError):
        polylock.prometheus.Collector()

    # The engine's own text is the same as what the collector gives.
    alone = CollectorRegistry()
    alone.register(polylock.prometheus.Collector(locks))
    names = [family.name for family in text_string_to_metric_families(generate_latest(alone).decode())]
    assert [family.name for family in text_string_to_metric_families(locks.metrics_text())] == names

    def samples(text: str) -> set[tuple[str, tuple[tuple[str, str], ...], float]]:
        families = text_string_to_metric_families(text)
        return {(s.name, tuple(sorted(s.labels.items())), s.value) for family in families for s in family.samples}

    assert samples(locks.metrics_text()) == samples(generate_latest(alone).decode())


def test_tells(url: str, name: str) -> None:
    with polylock.connect(url) as locks:
        seen: queue.SimpleQueue[polylock.Event] = queue.SimpleQueue()
        subscription = locks.on_event(seen.put)
        with locks.lock(name) as lease:
            lease.extend()
        events = [seen.get(timeout=10) for _ in range(3)]
        assert [event.kind for event in events] == ["acquired", "extended", "released"]
        assert {(event.resources, event.fencing_token) for event in events} == {((name,), lease.fencing_token)}
        assert subscription.missed == 0
        subscription.close()
        with locks.lock(name):
            pass
        again = locks.on_event(seen.put)
        short = locks.acquire(name, ttl=0.5, auto_extend=False, wait=20)
        lost = [seen.get(timeout=10) for _ in range(2)][-1]
        assert (lost.kind, lost.reason, short.loss) == ("lost", "expired", "expired")
        again.close()


def test_tells_on_a_loop(url: str, name: str) -> None:
    async def main() -> None:
        async with polylock.asyncio.connect(url) as locks:
            seen: asyncio.Queue[polylock.Event] = asyncio.Queue()
            locks.on_event(seen.put_nowait)
            async with locks.lock(name):
                pass
            kinds = [(await asyncio.wait_for(seen.get(), 10)).kind for _ in range(2)]
            assert kinds == ["acquired", "released"]

    asyncio.run(main())


def test_a_callback_that_fails_is_called_again() -> None:
    async def main() -> None:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
        async with polylock.asyncio.connect(URL) as locks:
            told = asyncio.Event()

            def callback(event: polylock.Event) -> None:
                if event.resources == ("last",):
                    told.set()
                raise ValueError(event.kind)

            locks.on_event(callback)
            await (await locks.acquire("first")).release()
            while not failures:
                await asyncio.sleep(0)
            await (await locks.acquire("last")).release()
            await asyncio.wait_for(told.wait(), 10)
        assert all(isinstance(failure, ValueError) for failure in failures)

    asyncio.run(main())


def test_logs(caplog: pytest.LogCaptureFixture) -> None:
    locks = polylock.connect(URL)
    written: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = logging.Handler()
    handler.emit = written.put  # type: ignore[method-assign,assignment]
    logger = logging.Logger("polylock.test", logging.INFO)
    logger.addHandler(handler)
    locks.log(logger)
    lease = locks.acquire("r", ttl=0.2, auto_extend=False)
    record = written.get(timeout=10)
    assert (record.levelname, record.polylock["reason"]) == ("WARNING", "expired")  # type: ignore[attr-defined]
    assert record.getMessage().startswith("r: lost after 0.")
    assert lease.loss == "expired"
