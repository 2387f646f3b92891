#!/usr/bin/env python3
"""Random faults under workers in all languages, and what came of it: `faults.py [OPTIONS] LANGUAGE=WORKER…`.

    --seconds N   how long in all, divided among the stages (default 60)
    --only NAME   this stage alone; may be given several times
    --short       without the stages in which two may hold at one time
    --seed N      of the faults, and of what the workers do
    --keep DIR    the workers' logs go here and stay, and when each fault was
    --table FILE  the table goes there, too, as Markdown

Each WORKER is run as `WORKER URL STORE LOG SEED NAMES SECONDS`. Exits with 1 if anything happened that the backend
promises not to happen, and with 2 if no fault met an acquisition: such a run shows nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from history import SECOND, History, Violation, check
from proxy import Network
from stage import LONGEST_TTL, SETTLED_WITHIN, Fault, Stage
from stages import SHORT, STAGES
from store import Store

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "servers"))
from clock import Clock

# What is locked: alone; alone or together with others, and by permits.
ALONE, SHARED = ("x:{}-0", "x:{}-1"), ("rw:{}", "permits:{}")
# And for each worker three that no other asks for: one is broken by the others; one is lost, as nobody renews it; and
# one, another for each of its lives, has a ttl that does not end while it is looked whether anything is left.
OWN, LAPSES, LONG = "own:{}-{}", "lapses:{}-{}", "long:{}-{}"
# What comes after this is to be broken.
BREAK = "!"
# After the last fault workers get so long, in seconds, to find the servers well again.
CALM = 1.5
# And so long to end by themselves.
LIMIT = 60.0
# Those whose programs fork when they are asked to (SIGUSR1).
FORKING = ("python", "c")


@dataclass
class Worker:
    """One process of one language, and those that took its place after it was killed."""

    language: str
    command: list[str]
    url: str
    clock: Clock
    process: subprocess.Popen[bytes] | None = None
    lives: int = 0

    @property
    def name(self) -> str:
        """Of this life."""
        return f"{self.language}.{self.lives}"


@dataclass
class Window:
    """When a fault was there; its effects are looked for from its beginning to some time after its end."""

    fault: str
    begin: int
    end: int = 0


@dataclass
class Run:
    """One backend for some seconds."""

    stage: Stage
    workers: list[Worker]
    store: Store
    directory: pathlib.Path
    seconds: float
    dice: random.Random
    history: History = field(default_factory=History)
    windows: list[Window] = field(default_factory=list)
    found: list[Violation] = field(default_factory=list)
    # What the backend does not promise to exclude: how often two held at one time.
    overlaps: int = 0
    began: float = field(default_factory=time.monotonic)

    def play(self) -> None:
        """Everything: the workers, the faults, and the look at what is left."""
        for worker in self.workers:
            self._start(worker)
        # The first fault finds them at work.
        while not all(self._log(worker).exists() for worker in self.workers) and self._left() > self.seconds / 2:
            time.sleep(0.01)
        try:
            while self._left() > CALM + 2 * LONGEST_TTL:
                with contextlib.ExitStack() as mended:
                    faults = self._choose()
                    for fault in faults:
                        mended.enter_context(self._having(fault))
                    lasts = 10 ** self.dice.uniform(-1.5, 0.4) * LONGEST_TTL
                    time.sleep(max(lasts, *(fault.lasts for fault in faults)))
                time.sleep(self.dice.uniform(0.1, 0.6))
            for worker in self.workers:
                self._await_rest(worker)
            # What a session has left goes with it: this is asked while they all live, and again when they have ended.
            self._look_for_left_overs("while nobody held anything")
            for worker in self.workers:
                self._await(worker)
        finally:
            for worker in self.workers:
                if worker.process and worker.process.poll() is None:
                    worker.process.kill()
                    worker.process.wait()
        for log in self.directory.glob("*.log"):
            self.history.read(log.stem, log)
        findings = check(self.history, keeps=self.stage.keeps)
        self.overlaps = len(findings.overlaps)
        self.found += findings.others
        if self.stage.excludes:
            self.found += findings.overlaps
        self._look_for_left_overs("when all had ended")

    def _left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def _start(self, worker: Worker) -> None:
        worker.lives += 1
        names = [name.format(self.directory.name) for name in ALONE + (SHARED if self.stage.shares else ())]
        names.append(BREAK + names[0])
        for other in self.workers:
            own = OWN.format(self.directory.name, other.language)
            names.append(own if other is worker else BREAK + own)
        if self.stage.keeps:
            names.append(LONG.format(self.directory.name, worker.name))
        # The last one is what it ends with.
        names.append(LAPSES.format(self.directory.name, worker.language))
        seed, log = self.dice.getrandbits(32), str(self._log(worker))
        arguments = [worker.url, str(self.store.path), log, str(seed), ",".join(names), f"{max(self._left(), 0):.3f}"]
        with open(self.directory / f"{worker.name}.err", "wb") as errors:
            worker.process = subprocess.Popen(
                [*worker.command, *arguments],
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                env={**os.environ, **worker.clock.environment},
            )

    def _log(self, worker: Worker) -> pathlib.Path:
        return self.directory / f"{worker.name}.log"

    def _await_rest(self, worker: Worker) -> None:
        """Until it holds nothing and wants nothing more."""
        assert worker.process
        limit = time.monotonic() + max(self._left(), 0) + LIMIT
        while worker.process.poll() is None and " rest - " not in self._log(worker).read_text():
            if time.monotonic() > limit:
                self._violation(f"{worker.name} went on and on")
                return
            time.sleep(0.05)

    def _await(self, worker: Worker) -> None:
        assert worker.process and worker.process.stdin
        worker.process.stdin.close()
        try:
            status = worker.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self._violation(f"{worker.name} did not end")
            return
        if status != 0:
            errors = (self.directory / f"{worker.name}.err").read_text(errors="replace")
            self._violation(f"{worker.name} ended with {status}: {errors[-500:].strip()}")

    def _violation(self, what: str) -> None:
        self.found.append(Violation(time.monotonic_ns(), what))

    def _choose(self) -> list[Fault]:
        """One fault, or one of the backend and one of a worker. The first is what the servers are there to show."""
        servers, links, workers = self.stage.of_servers(self.dice), self.stage.of_links(self.dice), self._of_workers()
        if servers and not self.windows:
            return servers[:1]
        kind = self.dice.choice([kind for kind in (servers, links, workers) if kind])
        first = self.dice.choice(kind)
        return [first] if kind is workers or self.dice.random() > 0.3 else [first, self.dice.choice(workers)]

    def _of_workers(self) -> list[Fault]:
        worker, hours = self.dice.choice(self.workers), self.dice.choice([-48, -1, 1, 48])
        found = [
            Fault("a worker stopped", lambda: self._pause(worker), lambda: self._resume(worker), whose=worker.language),
            Fault("a worker killed", lambda: self._kill(worker), lambda: self._start(worker), whose=worker.language),
        ]
        # Where a fail-over may lose the counter of tokens, they grow by the clocks of those who ask.
        if self.stage.excludes:
            clock = worker.clock
            away, back = functools.partial(clock.set, hours * 3600), functools.partial(clock.set, 0)
            found.append(Fault("a worker's clock set", away, back, whose=worker.language))
        # It is ready for that when it has begun to tell.
        forking = [worker for worker in self.workers if worker.language in FORKING and self._log(worker).exists()]
        if forking:
            forks = self.dice.choice(forking)
            fork = functools.partial(self._signal, forks, signal.SIGUSR1)
            found.append(Fault("a worker forked", fork, whose=forks.language))
        return found

    def _signal(self, worker: Worker, number: int) -> None:
        assert worker.process
        worker.process.send_signal(number)

    def _pause(self, worker: Worker) -> None:
        self.history.pauses[worker.name].append((time.monotonic_ns(), sys.maxsize))
        self._signal(worker, signal.SIGSTOP)

    def _resume(self, worker: Worker) -> None:
        self._signal(worker, signal.SIGCONT)
        pauses = self.history.pauses[worker.name]
        # What had to be told meanwhile is told a moment later.
        pauses[-1] = (pauses[-1][0], time.monotonic_ns() + SECOND)

    def _kill(self, worker: Worker) -> None:
        assert worker.process
        self.history.killed.add(worker.name)
        worker.process.kill()
        worker.process.wait()

    def _note(self, event: str, fault: Fault) -> None:
        with open(self.directory / "faults", "a") as log:
            log.write(f"{time.monotonic_ns()} {event} {fault.whose or '-'} {fault.name}\n")

    @contextlib.contextmanager
    def _having(self, fault: Fault) -> Iterator[None]:
        window = Window(fault.name, time.monotonic_ns())
        self._note("begins", fault)
        fault.begin()
        try:
            yield
        finally:
            fault.end()
            self._note("is over", fault)
            window.end = time.monotonic_ns() + int(LONGEST_TTL * SECOND)
            self.windows.append(window)
            self.history.troubles[fault.whose].append((window.begin, window.end))

    def _look_for_left_overs(self, when: str) -> None:
        """But for the long locks of those that were killed."""
        dead = {LONG.format(self.directory.name, worker) for worker in self.history.killed}
        limit = time.monotonic() + SETTLED_WITHIN
        while left := [found for found in self.stage.left_over() if not any(name in found for name in dead)]:
            if time.monotonic() > limit:
                self._violation(f"left on the servers {when}: {', '.join(left)}")
                return
            time.sleep(0.1)


def rows(run: Run) -> list[list[str]]:
    """What each kind of fault met: one row each."""
    kinds: dict[str, list[Window]] = defaultdict(list)
    for window in run.windows:
        kinds[window.fault].append(window)
    attempts = sorted(run.history.attempts, key=lambda attempt: attempt.granted)
    grants = [attempt.granted for attempt in attempts if attempt.granted]
    table = []
    for kind, windows in sorted(kinds.items()):

        def inside(begin: int, end: int, windows: list[Window] = windows) -> bool:
            return any(begin <= window.end and window.begin <= end for window in windows)

        gaps = [after - before for before, after in itertools.pairwise(grants) if inside(before, after)]
        table.append(
            [
                run.stage.name,
                kind,
                str(len(windows)),
                str(sum(inside(attempt.called, attempt.ended or sys.maxsize) for attempt in attempts)),
                str(sum(inside(grant, grant) for grant in grants)),
                str(sum(bool(attempt.lost) and inside(attempt.lost, attempt.lost) for attempt in attempts)),
                f"{max(gaps, default=0) / SECOND:.2f}",
                str(sum(inside(violation.at, violation.at) for violation in run.found)),
            ]
        )
    return table


HEAD = ["backend", "fault", "times", "operations", "grants", "losses told", "longest gap s", "violations"]


def markdown(table: list[list[str]]) -> str:
    """The table with columns of one width, which is Markdown as well."""
    widths = [max(len(row[column]) for row in [HEAD, *table]) for column in range(len(HEAD))]
    lines = [HEAD, ["-" * width for width in widths], *table]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", action="append", choices=STAGES)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--keep", type=pathlib.Path)
    parser.add_argument("--table", type=pathlib.Path)
    parser.add_argument("workers", nargs="+")
    options = parser.parse_args()
    commands = dict(worker.split("=", 1) for worker in options.workers)
    names = options.only or (SHORT if options.short else list(STAGES))
    print(f"seed {options.seed}", flush=True)
    network, table, passed, failed, invalid = Network(), [], 0, 0, 0
    violations: list[str] = []
    for name in names:
        with contextlib.ExitStack() as stack:
            top = options.keep or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
            directory = top / name
            directory.mkdir(parents=True)
            stage = STAGES[name](list(commands), network)
            stack.callback(stage.close)
            store = Store(directory / "store")
            stack.callback(store.close)
            workers = [
                Worker(language, shlex.split(command), stage.url(language), Clock(directory, f"{language}.clock"))
                for language, command in commands.items()
            ]
            dice = random.Random(f"{options.seed}-{name}")
            run = Run(stage, workers, store, directory, options.seconds / len(names), dice)
            run.play()
        found = rows(run)
        table += found
        met = any(int(row[3]) for row in found)
        attempts = run.history.attempts
        print(
            f"{stage.name}: {len(attempts)} calls, {sum(bool(a.granted) for a in attempts)} grants, "
            f"{sum(bool(a.lost) for a in attempts)} losses told, {len(run.windows)} faults, "
            f"{store.accepted} writes, {store.refused} refused as stale, "
            f"{run.overlaps} overlaps{'' if stage.excludes else ' (possible here)'}, {len(run.found)} violations",
            flush=True,
        )
        violations += [
            f"{stage.name}: {violation.what}" for violation in sorted(run.found, key=lambda found: found.at)[:20]
        ]
        failed += bool(run.found)
        invalid += not met
        passed += met and not run.found
    print(f"\n{markdown(table)}\n")
    if options.table:
        options.table.write_text(markdown(table) + "\n")
    if violations:
        print(f"seed {options.seed}", *violations, sep="\n")
    if invalid:
        print("a run in which no acquisition met a fault shows nothing")
    print(f"faults: {passed} passed, {failed + invalid} failed")
    network.close()
    return 1 if failed else 2 if invalid else 0


if __name__ == "__main__":
    sys.exit(main())
