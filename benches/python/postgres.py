"""polylock beside other locks on one PostgreSQL, in one run: `postgres.py URL`. Prints a line of JSON per comparison.

Both modes are compared with locks by hand (psycopg and pg_try_advisory_lock) and with pals. They take turns, so that
all see the same machine. What leases cost the server is read from /proc: it has to run on this host, and we as root or
as its user.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pals  # type: ignore[import-not-found]
import polylock
import psycopg
import sqlalchemy  # type: ignore[import-not-found]
from bench import WAITERS, Samples, hand_over, latency, rows
from peers import TTL, Blocking

MANY = 1000
# pals has a connection for each lock, and a server has 100.
FEW = 50
TURNS = 3
# For so many seconds they are held: long enough that they are renewed, as they are after a third of this ttl.
HELD = 6.0
HELD_TTL = 10
TICKS = os.sysconf("SC_CLK_TCK")
BACKEND = {"backend": "postgres"}
HELD_TOGETHER = {"backend": "postgres", "area": "many"}
# By hand, who waits tries again after so many seconds.
PAUSE = 0.01


class ByHand:
    """What people write: a connection for each thread, and a try now and then."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._own = threading.local()

    def _connection(self) -> psycopg.Connection[Any]:
        if not hasattr(self._own, "connection"):
            self._own.connection = psycopg.connect(self._url, autocommit=True, prepare_threshold=0)
        connection: psycopg.Connection[Any] = self._own.connection
        return connection

    def acquire(self, name: str) -> int:
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        while not self._ask("SELECT pg_try_advisory_lock(%s::bigint)", number):
            time.sleep(PAUSE)
        return number

    def release(self, number: int) -> bool:
        return self._ask("SELECT pg_advisory_unlock(%s::bigint)", number)

    def close(self) -> None:
        """Ends the connection of this thread; the others ended with theirs."""
        self._connection().close()

    def _ask(self, statement: str, number: int) -> bool:
        row = self._connection().execute(statement, (number,)).fetchone()
        return row is not None and bool(row[0])


class Server:
    """What the sessions of this database cost, apart from the one that asks."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)

    def processes(self) -> set[int]:
        others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        return {pid for (pid,) in self._connection.execute(others)}


def memory(processes: set[int]) -> float:
    """KiB that are theirs alone."""
    total = 0
    for pid in processes:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("Private_"))
    return float(total)


def processor(processes: set[int]) -> float:
    """Seconds of processor time that they have used."""
    total = 0
    for pid in processes:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


Opener = Callable[[], contextlib.AbstractContextManager[Blocking]]


def openers(url: str, mode: str, ttl: float) -> list[Opener]:
    """Ours, and after it the peers."""

    @contextlib.contextmanager
    def ours() -> Iterator[Blocking]:
        with polylock.connect(f"{url}?mode={mode}") as locks:
            yield Blocking(
                f"polylock, {mode} mode", lambda name: locks.acquire(name, ttl=ttl), lambda lease: lease.release()
            )

    @contextlib.contextmanager
    def by_hand() -> Iterator[Blocking]:
        hand = ByHand(url)
        yield Blocking("psycopg + pg_try_advisory_lock", hand.acquire, hand.release)
        hand.close()

    @contextlib.contextmanager
    def of_pals() -> Iterator[Blocking]:
        address = url.replace("postgres://", "postgresql+psycopg://")
        locker = pals.Locker("bench", create_engine_callable=lambda: sqlalchemy.create_engine(address, pool_size=FEW))

        def acquire(name: str) -> Any:
            lock = locker.lock(name)
            if not lock.acquire():
                raise RuntimeError("pals gave up")
            return lock

        yield Blocking("pals", acquire, lambda lock: lock.release())
        locker.engine.dispose()

    return [ours, by_hand, of_pals]


def many(contenders: list[Blocking], count: int) -> Samples:
    """Microseconds for each of so many locks, taken one after the other, held together and given back."""
    samples: Samples = {each.name: [] for each in contenders}
    for _ in range(TURNS):
        for each in contenders:
            began = time.perf_counter()
            held = [each.acquire(f"bench:{each.name}:{number}") for number in range(count)]
            for lock in held:
                each.release(lock)
            samples[each.name].append((time.perf_counter() - began) / count * 1e6)
    return samples


def costs(url: str, openers: list[Opener], count: int) -> tuple[Samples, Samples, Samples]:
    """What it costs the server that one client holds so many: connections, KiB of memory, ms of processor a second."""
    server = Server(url)
    connections, kib, ms = Samples(), Samples(), Samples()
    for opener in openers:
        before = server.processes()
        with opener() as each:
            held = [each.acquire(f"bench:held:{each.name}:{number}") for number in range(count)]
            theirs = server.processes() - before
            used, began = processor(theirs), time.perf_counter()
            time.sleep(HELD)
            # At least a tick: less is not counted.
            used = max(processor(theirs) - used, 1 / TICKS)
            ms[each.name] = [used / (time.perf_counter() - began) * 1e3]
            connections[each.name] = [float(len(theirs))]
            kib[each.name] = [memory(theirs)]
            for lock in held:
                each.release(lock)
    return connections, kib, ms


def main(url: str) -> None:
    for mode in ("session", "lease"):
        with contextlib.ExitStack() as stack:
            contenders = [stack.enter_context(opener()) for opener in openers(url, mode, TTL)]
            how = f"{mode} mode"
            rows(f"acquire + release, {how}", "us", latency(contenders, None), **BACKEND)
            rows(f"hand-over, {WAITERS} threads wait, {how}", "us", hand_over(contenders), **BACKEND, area="hand-over")
            # pals has a connection for each lock, and a server takes 100.
            for count, some in ((MANY, contenders[:2]), (FEW, contenders)):
                rows(
                    f"acquire + release of each of {count} held together, {how}",
                    "us",
                    many(some, count),
                    **HELD_TOGETHER,
                )
        for count, some_openers in ((MANY, openers(url, mode, HELD_TTL)[:2]), (FEW, openers(url, mode, HELD_TTL))):
            connections, kib, ms = costs(url, some_openers, count)
            held = f"while {count} are held, {how}"
            rows(f"the server's connections {held}", "connections", connections, **HELD_TOGETHER)
            rows(f"the server's own memory {held}", "KiB", kib, **HELD_TOGETHER)
            rows(f"the server's processor {held}", "ms/s", ms, **HELD_TOGETHER)


if __name__ == "__main__":
    main(sys.argv[1])
