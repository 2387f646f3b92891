#!/usr/bin/env python3
"""`worker.py` with one mistake, which the harness has to find: `mutant.py MISTAKE`, and the arguments of that."""

from __future__ import annotations

import sys
from typing import Any

import polylock
import worker

# It holds for longer than its leases last.
TTL, HOLDS = 0.3, 1.5


class Wrong:
    """A lease but for what is wrong with it."""

    def __init__(self, lease: polylock.Lease) -> None:
        self.lease = lease

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lease, name)


class Believing(Wrong):
    """It takes itself for the holder whatever the clock shows."""

    is_held = True


class Deaf(Wrong):
    """It does not hear that its lease was lost."""

    def on_lost(self, _: object) -> None:
        pass


class Repeating(Wrong):
    """It has one token for all its leases."""

    fencing_token = 1


MISTAKES = {"believing": Believing, "deaf": Deaf, "repeating": Repeating}


def main(mistake: str, url: str, store: str, log: str, seed: str, names: str, seconds: str) -> None:
    acquire, hold = polylock.LockManager.acquire, worker.hold

    def wrong(self: polylock.LockManager, resource: str, *, wait: float, **_: Any) -> Any:
        return MISTAKES[mistake](acquire(self, resource, ttl=TTL, wait=wait, auto_extend=False))

    polylock.LockManager.acquire = wrong  # type: ignore[assignment, method-assign]
    worker.hold = lambda lease, _, *told: hold(lease, HOLDS, *told)
    # Those that the right one asks for, too.
    contended = ",".join(name for name in names.split(",") if name.startswith("x:"))
    worker.main(url, store, log, seed, contended, seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
