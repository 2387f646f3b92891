"""Locks in PostgreSQL: one server in each of its two modes, and a primary with a synchronous standby."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import sys
import time
import urllib.parse
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "servers"))
from postgres_server import PostgresServer, may_have_disk, run_sql
from proxy import Link, Network
from stage import LONGEST_TTL, Fault, Stage, nothing

Act = Callable[[], None]

# More than a server on a small disk keeps of its log for later.
SEGMENTS = 6
# How soon a standby asks for its primary again.
PROMPT = "wal_retrieve_retry_interval=200ms"


class PostgresStage(Stage):
    """One server. Its data and its log are on a small disk, where this process may have one."""

    def __init__(self, workers: list[str], network: Network, mode: str) -> None:
        super().__init__(workers, network)
        self.name = f"postgres {mode}"
        self.keeps = mode == "lease"
        self._mode = mode
        self._disk = "100M" if may_have_disk() else None
        small = ("min_wal_size=2MB", "max_wal_size=2MB") if self._disk else ()
        self._server = self._stack.enter_context(PostgresServer(*small, disk=self._disk, own_clock=True))
        self._link_all([self._server.port])

    def url(self, worker: str) -> str:
        return _url(self._server, self._links[worker], f"mode={self._mode}")

    def of_servers(self, dice: random.Random) -> list[Fault]:
        server, clock, hours = self._server, self._server.clock, dice.choice([-48, -1, 1, 48])
        assert clock is not None
        found = [
            Fault("the server killed", server.kill, server.start),
            Fault("the server stopped", server.pause, server.resume),
            Fault("the server ended all sessions", self._end_sessions),
            Fault("the server full of clients", self._fill, lambda: self._limit(-1)),
        ]
        if self._disk:
            found.append(Fault("the disk full", self._fill_disk, self._empty_disk))
        # A lease that the server frees early, as its clock is set forward, is not promised to be exclusive.
        if self._mode == "session":
            found.append(Fault("the clock set", lambda: clock.set(hours * 3600), lambda: clock.set(0)))
        return found

    def left_over(self) -> list[str]:
        return _held(self._server, self._mode)

    def _end_sessions(self) -> None:
        ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"
        run_sql(self._server.admin_url, ours)

    def _limit(self, connections: int) -> None:
        run_sql(self._server.admin_url, f"ALTER DATABASE app CONNECTION LIMIT {connections}")

    def _fill(self) -> None:
        self._limit(0)
        self._end_sessions()

    @property
    def _filler(self) -> pathlib.Path:
        return self._server.directory / "disk" / "filler"

    def _fill_disk(self) -> None:
        taken = 0
        with open(self._filler, "wb") as filler:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(filler.fileno(), taken, size)
                        taken += size
        # What is left of its log goes, too.
        for _ in range(SEGMENTS):
            run_sql(self._server.admin_url, "SELECT pg_current_xact_id(); SELECT pg_switch_wal()", check=False)

    def _empty_disk(self) -> None:
        self._filler.unlink()
        # Without room for its log it has gone down.
        self._server.revive()


class StandbyStage(Stage):
    """A primary and a standby. A synchronous one has all that is committed: a fail-over loses no lease and no token.

    The locks of sessions are the server's own: who does not hear that it was replaced goes on to hold for a while.
    """

    def __init__(self, workers: list[str], network: Network, mode: str, *, synchronous: bool = True) -> None:
        super().__init__(workers, network)
        self.name = f"standby {mode}" if synchronous else "asynchronous standby"
        self.excludes = synchronous and mode == "lease"
        self._mode = mode
        self._synchronous = synchronous
        primary = self._stack.enter_context(PostgresServer(PROMPT))
        if synchronous:
            # For good, and in each copy: whoever is the primary commits nothing that the other does not have.
            # `walreceiver` is what a standby calls itself; who only copies has another name.
            run_sql(primary.admin_url, "ALTER SYSTEM SET synchronous_standby_names = 'walreceiver'")
            run_sql(primary.admin_url, "SELECT pg_reload_conf()")
        standby = self._stack.enter_context(PostgresServer(PROMPT, standby_of=primary.admin_url))
        self._servers = [primary, standby]
        self._link_all([server.port for server in self._servers])

    def url(self, worker: str) -> str:
        return _url(self._servers[0], self._links[worker], f"target_session_attrs=read-write&mode={self._mode}")

    def of_servers(self, dice: random.Random) -> list[Fault]:
        primary, standby = sorted(self._servers, key=_is_standby)

        def promoted(breaks: Act = nothing, mends: Act = nothing) -> tuple[Act, Act]:
            def begin() -> None:
                breaks()
                run_sql(standby.admin_url, "SELECT pg_promote()")

            def end() -> None:
                mends()
                # Two take themselves for the primary now, if it lives.
                time.sleep(0.5)
                primary.follow(standby.admin_url)

            return begin, end

        def cut_off() -> None:
            """From here on the standby hears nothing of what is granted."""
            run_sql(standby.admin_url, "ALTER SYSTEM SET primary_conninfo = ''")
            run_sql(standby.admin_url, "SELECT pg_reload_conf()")
            time.sleep(LONGEST_TTL / 2)

        if not self._synchronous:
            return [Fault("the standby cut off, then promoted", *promoted(cut_off))]
        return [
            Fault("the primary killed, the standby promoted", *promoted(primary.kill)),
            Fault("the primary stopped, the standby promoted", *promoted(primary.pause, primary.resume)),
            Fault("the standby promoted beside the primary", *promoted()),
            Fault("the primary killed", primary.kill, primary.start),
            Fault("the standby stopped", standby.pause, standby.resume),
        ]

    def left_over(self) -> list[str]:
        return _held(min(self._servers, key=_is_standby), self._mode)


def _url(server: PostgresServer, links: list[Link], options: str) -> str:
    """That of the server's application, by way of the links."""
    parts = urllib.parse.urlsplit(server.url)
    hosts = ",".join(f"127.0.0.1:{link.port}" for link in links)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@{hosts}", query=options).geturl()


def _held(server: PostgresServer, mode: str) -> list[str]:
    if mode == "session":
        return run_sql(server.admin_url, "SELECT objid FROM pg_locks WHERE locktype = 'advisory'").split()
    return run_sql(
        server.url, "SELECT key FROM polylock_lease WHERE owner IS NOT NULL AND expires_at > clock_timestamp()"
    ).split()


def _is_standby(server: PostgresServer) -> bool:
    return run_sql(server.admin_url, "SELECT pg_is_in_recovery()") == "t"
