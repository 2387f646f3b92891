"""Takes locks, holds them, writes under them and tells of all of it: `worker.py URL STORE LOG SEED NAMES SECONDS`.

The same program exists in each language; README.md of this directory says what it does and what the lines mean.
"""

from __future__ import annotations

import math
import os
import random
import signal
import socket
import sys
import time
from typing import Any

import polylock

PERMITS = 2
# More than there are.
ANY = 1_000_000
# In seconds: of a lock that its ttl does not end while it is looked whether anything is left, and how long a server may
# take for it.
LONG, HASTY = 60.0, 0.2


class Log:
    """One line an event, each written at once: a killed worker has told all that it knew."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def tell(self, event: str, name: str, attempt: int, detail: object = "-", at: int | None = None) -> None:
        line = f"{time.monotonic_ns() if at is None else at} {event} {name} {attempt} {detail}\n"
        os.write(self._file, line.encode())


class Store:
    """The guarded store, which refuses a token smaller than one that it has seen."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._answers = self._socket.makefile("r")

    def write(self, name: str, token: int) -> str:
        self._socket.sendall(f"{name} {token}\n".encode())
        return self._answers.readline().strip()


def fork_when_asked(locks: polylock.LockManager) -> None:
    """At SIGUSR1, wherever the program is just then: the child is told that the locks are its parent's, and ends."""

    def fork(*_: object) -> None:
        child = os.fork()
        if child == 0:
            os._exit(not is_disowned(locks))
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            raise RuntimeError("a child had its parent's locks")

    signal.signal(signal.SIGUSR1, fork)


def is_disowned(locks: polylock.LockManager) -> bool:
    try:
        locks.try_acquire("of the child", ttl=1)
    except polylock.Forked:
        return True
    return False


def hold(lease: polylock.Lease, seconds: float, log: Log, name: str, attempt: int) -> None:
    """Asks every few milliseconds whether the lease is still held, until the time is over."""
    ends = time.monotonic() + seconds
    was_held = True
    while was_held and time.monotonic() < ends:
        before = time.monotonic_ns()
        if lease.is_held:
            log.tell("valid", name, attempt, at=before)
        else:
            log.tell("invalid", name, attempt)
            was_held = False
        time.sleep(0.01)


def acquire(
    locks: polylock.LockManager, dice: random.Random, name: str, attempt: int, log: Log, **options: Any
) -> tuple[polylock.Lease, bool]:
    """As the name and the dice say, and whether it is held alone."""
    kind = name.partition(":")[0]
    if kind == "permits":
        log.tell("beside", name, attempt, PERMITS - 1)
        return locks.semaphore(name, PERMITS, **options).acquire(), False
    if kind == "rw" and dice.random() < 0.7:
        log.tell("beside", name, attempt, ANY)
        return locks.shared(name, **options).acquire(), False
    return locks.acquire(name, **options), True


def take_away(locks: polylock.LockManager, name: str, attempt: int, log: Log) -> None:
    """Breaks the lock of whoever has it."""
    try:
        holder = locks.inspect(name)
        if holder is not None and holder.fencing_token:
            log.tell("breaks", name, attempt, holder.fencing_token)
            if locks.break_(name, holder.fencing_token):
                log.tell("broke", name, attempt, holder.fencing_token)
    except polylock.Error:
        time.sleep(0.05)


def once(
    patient: polylock.LockManager,
    hasty: polylock.LockManager,
    dice: random.Random,
    name: str,
    attempt: int,
    log: Log,
    store: Store,
) -> None:
    """One lock, from asking for it to giving it back."""
    if name.startswith("!"):
        return take_away(patient, name[1:], attempt, log)
    locks = hasty if name.startswith("long:") else patient
    is_broken, lapses = name.startswith("own:"), name.startswith("lapses:")
    lasts = 1.0 if is_broken else 0.3 if lapses else dice.uniform(0.3, 1.0)
    ttl = LONG if name.startswith("long:") else lasts
    wait = dice.choice([0.0, 0.5, 2.0])
    auto_extend = is_broken or (not lapses and dice.random() < 0.7)
    log.tell("call", name, attempt, round(wait * 1000))
    if not auto_extend:
        log.tell("lasts", name, attempt, math.ceil(ttl * 1000))
    try:
        options = {"ttl": ttl, "wait": wait, "auto_extend": auto_extend}
        lease, alone = acquire(locks, dice, name, attempt, log, **options)
    except polylock.Error as error:
        log.tell("failed", name, attempt, type(error).__name__)
        if not isinstance(error, polylock.AcquireTimeout):
            time.sleep(0.05)
        return
    log.tell("granted", name, attempt, lease.fencing_token)
    lease.on_lost(lambda reason: log.tell("lost", name, attempt, reason))
    if alone:
        log.tell("wrote", name, attempt, store.write(name, lease.fencing_token))
    part = 1.6 if is_broken or lapses else dice.choice([0.0, 0.1, 0.3, 1.6])
    hold(lease, part * lasts or 0.02, log, name, attempt)
    if dice.random() < 0.3:
        log.tell("extend", name, attempt)
        try:
            lease.extend()
        except polylock.Error as error:
            log.tell("unextended", name, attempt, type(error).__name__)
        hold(lease, 0.02, log, name, attempt)
    # Also if it was lost meanwhile: then the store is what stands between us and the next holder.
    if alone:
        log.tell("wrote", name, attempt, store.write(name, lease.fencing_token))
    log.tell("release", name, attempt)
    log.tell("released", name, attempt, lease.release().value)


def main(url: str, store_path: str, log_path: str, seed: str, names: str, seconds: str) -> None:
    store, dice = Store(store_path), random.Random(seed)
    ends = time.monotonic() + float(seconds)
    with polylock.connect(url) as locks, polylock.connect(url, node_timeout=HASTY) as hasty:
        fork_when_asked(locks)
        # From here on it may be asked to.
        log, attempt, known = Log(log_path), 0, names.split(",")
        while time.monotonic() < ends:
            attempt += 1
            once(locks, hasty, dice, dice.choice(known), attempt, log, store)
        once(locks, hasty, dice, known[-1], attempt + 1, log, store)
        log.tell("rest", "-", 0)
        sys.stdin.read()
    log.tell("end", "-", 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
