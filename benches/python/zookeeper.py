"""polylock beside kazoo on one ZooKeeper, in one run: `zookeeper.py URL`. Prints a line of JSON per comparison.

Both keep one session for all their locks. They take turns, so that both see the same machine.
"""

from __future__ import annotations

import sys
import time
import urllib.parse
from typing import Any

import kazoo.client  # type: ignore[import-not-found]
import polylock
from bench import WAITERS, Samples, hand_over, latency, rows
from peers import TTL, Blocking

LEASES = 500
TURNS = 5
BACKEND = {"backend": "zookeeper"}


def many(contenders: list[Blocking]) -> Samples:
    """Microseconds for each of so many locks, taken one after the other, held together and given back."""
    samples: Samples = {each.name: [] for each in contenders}
    for _ in range(TURNS):
        for each in contenders:
            began = time.perf_counter()
            held = [each.acquire(f"bench:{each.name}:{number}") for number in range(LEASES)]
            for lock in held:
                each.release(lock)
            samples[each.name].append((time.perf_counter() - began) / LEASES * 1e6)
    return samples


def main(url: str) -> None:
    locks = polylock.connect(url)
    client = kazoo.client.KazooClient(urllib.parse.urlsplit(url).netloc)
    client.start()

    def kazoo_lock(name: str) -> Any:
        lock = client.Lock(f"/kazoo/{name}")
        lock.acquire()
        return lock

    contenders = [
        Blocking("polylock", lambda name: locks.acquire(name, ttl=TTL), lambda lease: lease.release()),
        Blocking("kazoo Lock", kazoo_lock, lambda lock: lock.release()),
    ]
    rows("acquire + release", "us", latency(contenders, None), **BACKEND)
    rows(f"hand-over, {WAITERS} threads wait", "us", hand_over(contenders), **BACKEND, area="hand-over")
    rows(f"acquire + release of each of {LEASES} held together", "us", many(contenders), **BACKEND, area="many")
    client.stop()
    locks.close()


if __name__ == "__main__":
    main(sys.argv[1])
