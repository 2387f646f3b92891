"""polylock beside other Python locks, in one run: `bench.py URL NODES`. Prints a line of JSON per comparison.

URL is one Redis, NODES five of them with commas between. The contenders take turns, so that all see the same machine.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable

import peers
import uvloop
from floor import Floor

ROUNDS = 40
PAIRS = 20
WARM_UP = 4
TURNS = 5
TURN = 0.4  # seconds of throughput
IN_FLIGHT = 64
WAITERS = 10
HAND_OVERS = 3
HOLD = 0.002
Samples = dict[str, list[float]]


def rows(what: str, unit: str, samples: Samples, **fields: str) -> None:
    """A line for each peer: the medians of ours, which are the first, and of its own."""
    ours, *others = ((name, statistics.median(values)) for name, values in samples.items())
    for name, value in others:
        row = {"language": "python", "what": what, "unit": unit, "ours": ours[1], "peer": value, "peer_name": name}
        print(json.dumps(row | fields), flush=True)


# Blocking


def latency(contenders: list[peers.Blocking], floor: Floor | None) -> Samples:
    """Microseconds of a pair that nobody else wants."""
    pairs: dict[str, Callable[[], object]] = {
        each.name: lambda each=each: each.release(each.acquire("bench:" + each.name))  # type: ignore[misc]
        for each in contenders
    }
    if floor:
        pairs["raw socket"] = floor.pair
    samples: Samples = {name: [] for name in pairs}
    for turn in range(WARM_UP + ROUNDS):
        for name, pair in pairs.items():
            for _ in range(PAIRS):
                began = time.perf_counter()
                pair()
                if turn >= WARM_UP:
                    samples[name].append((time.perf_counter() - began) * 1e6)
    return samples


def threads(contenders: list[peers.Blocking]) -> tuple[Samples, Samples]:
    """Pairs per second, and microseconds of processor time per pair, of many threads."""
    rates, costs = ({each.name: list[float]() for each in contenders} for _ in range(2))
    for _ in range(TURNS):
        for each in contenders:
            done = [0] * IN_FLIGHT
            end = time.perf_counter() + TURN

            def work(number: int, each: peers.Blocking = each, done: list[int] = done, end: float = end) -> None:
                while time.perf_counter() < end:
                    each.release(each.acquire(f"bench:{each.name}:{number}"))
                    done[number] += 1

            workers = [threading.Thread(target=work, args=(number,)) for number in range(IN_FLIGHT)]
            began, cpu = time.perf_counter(), time.process_time()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            rates[each.name].append(sum(done) / (time.perf_counter() - began))
            costs[each.name].append((time.process_time() - cpu) / sum(done) * 1e6)
    return rates, costs


def hand_over(contenders: list[peers.Blocking]) -> Samples:
    """Microseconds from a release until the next of ten waiting threads has the lock."""
    samples: Samples = {each.name: [] for each in contenders}
    for turn in range(HAND_OVERS):
        for each in contenders:
            name = f"bench:{each.name}:hand-over:{turn}"
            released, gaps = [0.0], samples[each.name]

            def wait(each: peers.Blocking = each, name: str = name, gaps: list[float] = gaps) -> None:
                held = each.acquire(name)
                gaps.append((time.perf_counter() - released[0]) * 1e6)  # noqa: B023 - of this turn
                time.sleep(HOLD)
                released[0] = time.perf_counter()  # noqa: B023 - of this turn
                each.release(held)

            held = each.acquire(name)
            waiters = [threading.Thread(target=wait) for _ in range(WAITERS)]
            for waiter in waiters:
                waiter.start()
            time.sleep(0.3)
            released[0] = time.perf_counter()
            each.release(held)
            for waiter in waiters:
                waiter.join()
    return samples


# asyncio


async def latency_on_a_loop(contenders: list[peers.Awaited], floor: Floor | None) -> Samples:
    async def raw() -> None:
        assert floor is not None
        floor.pair()

    async def pair(each: peers.Awaited) -> None:
        await each.release(await each.acquire("bench:" + each.name))

    pairs: dict[str, Callable[[], Awaitable[None]]] = {
        each.name: lambda each=each: pair(each)  # type: ignore[misc]
        for each in contenders
    }
    if floor:
        pairs["raw socket"] = raw
    samples: Samples = {name: [] for name in pairs}
    for turn in range(WARM_UP + ROUNDS):
        for name, once in pairs.items():
            for _ in range(PAIRS):
                began = time.perf_counter()
                await once()
                if turn >= WARM_UP:
                    samples[name].append((time.perf_counter() - began) * 1e6)
    return samples


async def tasks(contenders: list[peers.Awaited]) -> tuple[Samples, Samples]:
    rates, costs = ({each.name: list[float]() for each in contenders} for _ in range(2))
    for _ in range(TURNS):
        for each in contenders:
            end = time.perf_counter() + TURN

            async def work(number: int, each: peers.Awaited = each, end: float = end) -> int:
                done = 0
                while time.perf_counter() < end:
                    await each.release(await each.acquire(f"bench:{each.name}:{number}"))
                    done += 1
                return done

            began, cpu = time.perf_counter(), time.process_time()
            done = sum(await asyncio.gather(*(work(number) for number in range(IN_FLIGHT))))
            rates[each.name].append(done / (time.perf_counter() - began))
            costs[each.name].append((time.process_time() - cpu) / done * 1e6)
    return rates, costs


async def hand_over_on_a_loop(contenders: list[peers.Awaited]) -> Samples:
    samples: Samples = {each.name: [] for each in contenders}
    for turn in range(HAND_OVERS):
        for each in contenders:
            name = f"bench:{each.name}:hand-over:{turn}"
            released, gaps = [0.0], samples[each.name]

            async def wait(each: peers.Awaited = each, name: str = name, gaps: list[float] = gaps) -> None:
                held = await each.acquire(name)
                gaps.append((time.perf_counter() - released[0]) * 1e6)  # noqa: B023 - of this turn
                await asyncio.sleep(HOLD)
                released[0] = time.perf_counter()  # noqa: B023 - of this turn
                await each.release(held)

            held = await each.acquire(name)
            waiters = [asyncio.create_task(wait()) for _ in range(WAITERS)]
            await asyncio.sleep(0.3)
            released[0] = time.perf_counter()
            await each.release(held)
            await asyncio.gather(*waiters)
    return samples


def compare_blocking(urls: list[str], floor: Floor | None, nodes: str, **backend: str) -> None:
    contenders = peers.blocking(urls)
    rows(f"acquire + release{nodes}", "us", latency(contenders, floor), **backend)
    if floor:
        rates, costs = threads(contenders)
        rows(f"{IN_FLIGHT} threads", "pairs/s", rates)
        rows(f"processor time of a pair, {IN_FLIGHT} threads", "us", costs, area="cpu")
        rows(f"hand-over, {WAITERS} threads wait", "us", hand_over(contenders), area="hand-over")


async def compare_on_a_loop(urls: list[str], floor: Floor | None, nodes: str, loop: str, **backend: str) -> None:
    contenders = peers.awaited(urls)
    rows(f"acquire + release{nodes}, {loop}", "us", await latency_on_a_loop(contenders, floor), **backend)
    if floor:
        rates, costs = await tasks(contenders)
        rows(f"{IN_FLIGHT} in flight, {loop}", "pairs/s", rates)
        rows(f"processor time of a pair, {IN_FLIGHT} in flight, {loop}", "us", costs, area="cpu")
        if loop == "asyncio":
            samples = await hand_over_on_a_loop(contenders)
            rows(f"hand-over, {WAITERS} wait, {loop}", "us", samples, area="hand-over")
    for each in contenders:
        await each.close()


def main(url: str, nodes: list[str]) -> None:
    floor = Floor(url, "bench:floor")
    compare_blocking([url], floor, "")
    compare_blocking(nodes, None, f", {len(nodes)} nodes", backend="redlock")
    asyncio.run(compare_on_a_loop([url], floor, "", "asyncio"))
    asyncio.run(compare_on_a_loop(nodes, None, f", {len(nodes)} nodes", "asyncio", backend="redlock"))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(compare_on_a_loop([url], floor, "", "uvloop"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","))
