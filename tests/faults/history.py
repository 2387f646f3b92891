"""What workers told, and whether it may be true.

A history of a lock with unique owners is right if and only if the times in which it was certainly held are disjoint:
sorting is enough, and no search is needed. A holder's time runs from when it knew of the grant to the last moment at
which the lease said that it was held; both are read from the one monotonic clock of this machine.
"""

from __future__ import annotations

import heapq
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

SECOND = 1_000_000_000
# How long after the end of a lease its holder may be told, and after the end of a wait its waiter, on a machine that
# is busy with everything else. The engine's own bounds are tested apart, in core/tests.
TOLD_WITHIN = 1 * SECOND
ENDED_WITHIN = 6 * SECOND
# How soon a lease is renewed: a third of the longest ttl, and as much as the answer may take.
ASKED_WITHIN = SECOND // 2


@dataclass
class Attempt:
    """One call of acquire, and the lease that came of it. Times are in ns; 0 for what did not happen."""

    worker: str
    name: str
    number: int
    called: int
    wait: int
    # How many others may hold beside it, of those who say the same.
    beside: int = 0
    # How long it lasts if it is not extended; 0 if the engine renews it, or the worker has begun to extend it.
    lasts: int = 0
    # By the engine.
    is_renewed: bool = True
    failed: int = 0
    why: str = ""
    granted: int = 0
    token: int = 0
    last_valid: int = 0
    # When it was valid after it should have ended, and for how long.
    late: int = 0
    too_long: int = 0
    invalid: int = 0
    lost: int = 0
    reason: str = ""
    release: int = 0
    released: int = 0
    outcome: str = ""
    stale: int = 0
    accepted: int = 0
    # When somebody began to break it, and when he knew that he had.
    breaking: int = 0
    broken: int = 0

    @property
    def held_until(self) -> int:
        """What was broken is held no more, though its holder does not know."""
        held_until = max(self.granted, self.last_valid)
        return min(held_until, self.breaking) if self.breaking else held_until

    @property
    def ended(self) -> int:
        return self.granted or self.failed

    def __str__(self) -> str:
        return f"{self.worker}#{self.number} on {self.name}"


@dataclass
class History:
    """The attempts of all workers, and when the harness stopped or killed which."""

    attempts: list[Attempt] = field(default_factory=list)
    # When a worker was stopped (SIGSTOP), and until when.
    pauses: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    killed: set[str] = field(default_factory=set)
    # When something else was wrong with the workers of a language, or with all of them: "".
    troubles: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    # Locks that were broken, by their names and tokens: when somebody began to, and when he knew that he had.
    breaking: dict[tuple[str, int], int] = field(default_factory=dict)
    broken: dict[tuple[str, int], int] = field(default_factory=dict)

    def read(self, worker: str, log: pathlib.Path) -> None:
        """Adds what a worker told. A last line that it did not end to write is left out."""
        attempts: dict[int, Attempt] = {}
        text = log.read_text() if log.exists() else ""
        for line in text.splitlines(keepends=True):
            if line.endswith("\n"):
                self._event(worker, attempts, *line.split())
        self.attempts += attempts.values()

    def _event(
        self, worker: str, attempts: dict[int, Attempt], at: str, event: str, name: str, number: str, detail: str
    ) -> None:
        time, key = int(at), int(number)
        if event == "call":
            attempts[key] = Attempt(worker, name, key, time, int(detail) * 1_000_000)
            return
        if event in ("rest", "end"):
            return
        if event == "breaks":
            of = name, int(detail)
            self.breaking[of] = min(time, self.breaking.get(of, time))
            return
        if event == "broke":
            self.broken[name, int(detail)] = time
            return
        attempt = attempts[key]
        if event == "granted":
            attempt.granted, attempt.token = time, int(detail)
        elif event == "failed":
            attempt.failed, attempt.why = time, detail
        elif event == "beside":
            attempt.beside = int(detail)
        elif event == "lasts":
            attempt.lasts, attempt.is_renewed = int(detail) * 1_000_000, False
        elif event == "extend":
            attempt.lasts = 0
        elif event == "valid":
            attempt.last_valid = time
            too_long = time - attempt.granted - attempt.lasts
            if attempt.lasts and too_long > 0:
                attempt.late, attempt.too_long = time, too_long
        elif event == "invalid":
            attempt.invalid = attempt.invalid or time
        elif event == "lost":
            attempt.lost, attempt.reason = attempt.lost or time, detail
        elif event == "wrote":
            attempt.accepted += detail == "ok"
            attempt.stale += detail == "stale"
        elif event == "release":
            attempt.release = time
        elif event == "released":
            attempt.released, attempt.outcome = time, detail
        elif event != "unextended":
            raise ValueError(f"{worker} told of {event}")

    def paused(self, worker: str, since: int, until: int) -> bool:
        return any(begin < until and since < end for begin, end in self.pauses[worker])

    def troubled(self, holder: Attempt) -> bool:
        """Whether it may not have been told that it was broken, as something else was wrong."""
        worker, since, until = holder.worker, holder.broken, holder.lost
        troubles = self.troubles[""] + self.troubles[worker.rpartition(".")[0]]
        return self.paused(worker, since, until) or any(begin < until and since < end for begin, end in troubles)


@dataclass
class Violation:
    """What must not be, and when it was."""

    at: int
    what: str


@dataclass
class Findings:
    """All that is wrong with a history; apart from the rest, what some backends do not promise to exclude."""

    overlaps: list[Violation] = field(default_factory=list)
    others: list[Violation] = field(default_factory=list)


def check(history: History, *, keeps: bool = False) -> Findings:
    """Looks for everything. Where the servers keep what they grant, nobody loses anything that was not broken."""
    by_name: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in history.attempts:
        if attempt.granted:
            of = attempt.name, attempt.token
            attempt.breaking, attempt.broken = history.breaking.get(of, 0), history.broken.get(of, 0)
            by_name[attempt.name].append(attempt)
    found = Findings()
    for holders in by_name.values():
        holders.sort(key=lambda holder: holder.granted)
        found.overlaps += too_many_at_a_time(holders)
        found.others += tokens_that_do_not_grow(holders)
        found.others += breaks_not_told(history, holders)
        if keeps:
            found.others += losses_without_a_cause(holders)
    found.others += without_end(history)
    found.others += losses_not_told(history)
    found.others += waits_without_end(history)
    found.others += refusals(history)
    return found


def too_many_at_a_time(holders: Iterable[Attempt]) -> Iterator[Violation]:
    """`holders` of one resource, by the time of their grants."""
    inside: list[Attempt] = []
    for holder in holders:
        inside = [other for other in inside if other.held_until > holder.granted]
        if len(inside) > min([holder.beside, *(other.beside for other in inside)]):
            last = max(inside, key=lambda other: other.held_until)
            many, by = "two" if len(inside) == 1 else len(inside) + 1, (last.held_until - holder.granted) / 1e6
            yield Violation(holder.granted, f"{many} at a time, for {by:.3f} ms: {last} and {holder}")
        inside.append(holder)


def tokens_that_do_not_grow(holders: list[Attempt]) -> Iterator[Violation]:
    """A grant that was known before another was asked for has the smaller token; no two are the same."""
    known: list[tuple[int, int, Attempt]] = []
    greatest: Attempt | None = None
    for holder in sorted(holders, key=lambda holder: holder.called):
        while known and known[0][0] < holder.called:
            *_, before = heapq.heappop(known)
            if greatest is None or before.token > greatest.token:
                greatest = before
        if greatest is not None and holder.token <= greatest.token:
            yield Violation(holder.granted, f"token {holder.token} of {holder} after {greatest.token} of {greatest}")
        heapq.heappush(known, (holder.granted, id(holder), holder))
    tokens: dict[int, Attempt] = {}
    for holder in holders:
        other = tokens.setdefault(holder.token, holder)
        if other is not holder:
            yield Violation(holder.granted, f"{other} and {holder} have the same token {holder.token}")


def without_end(history: History) -> Iterator[Violation]:
    """A lease that nobody extends ends with its ttl, also where its backend lets nobody else in yet; one that is lost
    is not valid any more."""
    for attempt in history.attempts:
        if attempt.too_long:
            yield Violation(attempt.late, f"{attempt} was valid for {attempt.too_long / 1e6:.3f} ms after its ttl")
        if 0 < attempt.lost < attempt.last_valid:
            yield Violation(attempt.last_valid, f"{attempt} was valid after it had been told of its loss")


def losses_not_told(history: History) -> Iterator[Violation]:
    """Whoever does not hold any more is told so, and nobody is told so after it released what it held."""
    for attempt in history.attempts:
        if attempt.invalid and not attempt.lost and attempt.worker not in history.killed:
            yield Violation(attempt.invalid, f"{attempt} was lost, and not told so")
        late = attempt.lost - attempt.invalid > TOLD_WITHIN
        if attempt.invalid and late and not history.paused(attempt.worker, attempt.invalid, attempt.lost):
            late_ms = (attempt.lost - attempt.invalid) / 1e6
            yield Violation(attempt.invalid, f"{attempt} was told of its loss after {late_ms:.0f} ms")
        if attempt.outcome == "released" and attempt.lost > attempt.released:
            yield Violation(attempt.lost, f"{attempt} was told of a loss after it had released what it held")


def breaks_not_told(history: History, holders: Iterable[Attempt]) -> Iterator[Violation]:
    """Whose lock was broken learns of that when it is renewed or given back, unless the servers cannot be asked."""
    for holder in holders:
        if not holder.broken or holder.last_valid < holder.broken:
            continue
        if holder.outcome == "released":
            yield Violation(holder.released, f"{holder} was broken, and released all the same")
        is_late = holder.is_renewed and holder.lost - holder.broken > ASKED_WITHIN
        if is_late and holder.reason == "expired" and not history.troubled(holder):
            yield Violation(holder.lost, f"{holder} was broken, and not told so before its ttl was over")


def losses_without_a_cause(holders: Iterable[Attempt]) -> Iterator[Violation]:
    for holder in holders:
        if holder.lost and holder.reason == "taken" and not holder.breaking:
            yield Violation(holder.lost, f"{holder} was lost, though nobody broke it")


def waits_without_end(history: History) -> Iterator[Violation]:
    """Each call ends, with a lease or without, within its wait."""
    for attempt in history.attempts:
        if not attempt.ended:
            if attempt.worker not in history.killed:
                yield Violation(attempt.called, f"{attempt} never ended")
            continue
        over = attempt.ended - attempt.called - attempt.wait
        if over > ENDED_WITHIN and not history.paused(attempt.worker, attempt.called, attempt.ended):
            yield Violation(attempt.called, f"{attempt} ended {over / 1e9:.1f} s after its wait")


def refusals(history: History) -> Iterator[Violation]:
    """Faults are no reason not to understand what is asked."""
    for attempt in history.attempts:
        if attempt.why.startswith(("Unsupported", "InvalidArgument", "Internal")):
            yield Violation(attempt.failed, f"{attempt} was refused: {attempt.why}")
