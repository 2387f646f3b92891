"""Where the locks of a run are kept: real servers, links from each worker to each of them, and what can go wrong."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "servers"))
from postgres_server import PostgresServer, run_sql
from proxy import Link, Network, Weather
from redis_server import RedisClient, RedisServer
from zookeeper_server import ZookeeperClient, ZookeeperServer

LONGEST_TTL = 1.0
# How long after the last worker has ended something may be left on a server that a fault kept from being asked.
SETTLED_WITHIN = 15.0


@dataclass
class Fault:
    """Something that goes wrong, and is mended after a while."""

    name: str
    begin: Callable[[], None]
    end: Callable[[], None]


class Stage:
    """One backend with its servers."""

    name = ""

    def __init__(self, workers: list[str], network: Network) -> None:
        self._network = network
        self._stack = contextlib.ExitStack()
        self._links: dict[str, list[Link]] = {worker: [] for worker in workers}

    def url(self, worker: str) -> str:
        """Where this worker finds the locks."""
        raise NotImplementedError

    def faults(self, dice: random.Random) -> list[Fault]:
        """Of each kind one, at a place that the dice say."""
        return self._weather(dice)

    def left_over(self) -> list[str]:
        """What is still there of locks when everybody has released all."""
        raise NotImplementedError

    def close(self) -> None:
        self._stack.close()

    def _link_all(self, ports: list[int]) -> None:
        for links in self._links.values():
            links += [self._network.link(port) for port in ports]

    def _weather(self, dice: random.Random) -> list[Fault]:
        """One worker is apart from some servers, or all."""
        worker = dice.choice(list(self._links))
        links = self._links[worker]
        some = dice.sample(links, dice.randint(1, len(links))) if links else []
        where = _how_many(some, links, "link")
        return [
            Fault(
                f"{where} of one worker {weather.value}",
                functools.partial(self._network.set, some, weather),
                functools.partial(self._network.set, some, Weather.CALM),
            )
            for weather in Weather
            if weather is not Weather.CALM and some
        ]


class FileStage(Stage):
    """Files of this host. Nothing is between a worker and its locks."""

    name = "file"

    def __init__(self, workers: list[str], network: Network) -> None:
        super().__init__(workers, network)
        self._directory = tempfile.mkdtemp(prefix="polylock-faults-")
        self._stack.callback(shutil.rmtree, self._directory)

    def url(self, worker: str) -> str:
        return f"file://{self._directory}"

    def left_over(self) -> list[str]:
        """Files whose lock somebody has: the system knows."""
        inodes = {str(file.stat().st_ino) for file in pathlib.Path(self._directory).rglob("*") if file.is_file()}
        locked = {line.split()[5].split(":")[-1] for line in pathlib.Path("/proc/locks").read_text().splitlines()}
        return sorted(inodes & locked)


class RedisStage(Stage):
    """One Redis, or Redlock over several. They keep their data through a restart, but for the first of several."""

    def __init__(self, workers: list[str], network: Network, count: int) -> None:
        super().__init__(workers, network)
        self.name = "redis" if count == 1 else f"redlock of {count}"
        durable = ("--appendonly", "yes", "--appendfsync", "always")
        self._servers = [self._stack.enter_context(RedisServer(*durable)) for _ in range(count)]
        self._link_all([server.port for server in self._servers])

    def url(self, worker: str) -> str:
        # No lock lives longer, so that is how long one that has restarted sits out.
        sits_out = f"?longest_ttl={LONGEST_TTL * 1.1}" if len(self._servers) > 1 else ""
        return ",".join(f"redis://127.0.0.1:{link.port}{sits_out}" for link in self._links[worker])

    def faults(self, dice: random.Random) -> list[Fault]:
        some, full = dice.sample(self._servers, dice.randint(1, len(self._servers))), _Full()
        where = _how_many(some, self._servers, "server")

        def each(act: Callable[[RedisServer], object]) -> Callable[[], None]:
            def act_on_each() -> None:
                for server in some:
                    act(server)

            return act_on_each

        # Always the same one: Redlock does not survive a majority that forgets within one ttl.
        forgetful = [Fault("one server forgot everything", self._forget, self._servers[0].start)]
        return [
            *super().faults(dice),
            *(forgetful if len(self._servers) > 1 else []),
            Fault(f"{where} stopped", each(RedisServer.pause), each(RedisServer.resume)),
            Fault(f"{where} killed", each(RedisServer.kill), each(RedisServer.start)),
            Fault(f"{where} without scripts", each(lambda server: server.command("SCRIPT", "FLUSH")), _nothing),
            Fault(f"{where} cut all connections", each(_cut_all), _nothing),
            Fault(f"{where} full of clients", each(full.fill), full.empty),
        ]

    def _forget(self) -> None:
        self._servers[0].kill()
        self._servers[0].forget()

    def left_over(self) -> list[str]:
        keys = {key for server in self._servers for key in _keys(server)}
        return sorted(key for key in keys if not key.startswith("polylock:fence:"))


def _how_many(some: Sequence[object], of: Sequence[object], what: str) -> str:
    if len(of) == 1:
        return f"the {what}"
    if len(some) == len(of):
        return f"all {what}s"
    return f"{'a majority' if 2 * len(some) > len(of) else 'a minority'} of {what}s"


def _nothing() -> None:
    """It was over at once."""


def _keys(server: RedisServer) -> list[str]:
    found = server.command("KEYS", "*")
    assert isinstance(found, list)
    return [key.decode() for key in found if isinstance(key, bytes)]


def _cut_all(server: RedisServer) -> None:
    server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    server.command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")


class _Full:
    """Servers that take no more clients, for as long as the connections that fill them are there."""

    def __init__(self) -> None:
        self._clients: list[RedisClient] = []

    def fill(self, server: RedisServer) -> None:
        client = server.client()
        self._clients.append(client)
        client.command("CONFIG", "SET", "maxclients", 1)
        client.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def empty(self) -> None:
        for client in self._clients:
            client.command("CONFIG", "SET", "maxclients", 10_000)
            client.close()


class PostgresStage(Stage):
    """PostgreSQL in one of its two modes."""

    def __init__(self, workers: list[str], network: Network, mode: str) -> None:
        super().__init__(workers, network)
        self.name = f"postgres {mode}"
        self._mode = mode
        self._server = self._stack.enter_context(PostgresServer())
        self._link_all([self._server.port])

    def url(self, worker: str) -> str:
        parts = urllib.parse.urlsplit(self._server.url)
        place = f"{parts.username}:{parts.password}@127.0.0.1:{self._links[worker][0].port}"
        return parts._replace(netloc=place, query="mode=session" if self._mode == "session" else "").geturl()

    def faults(self, dice: random.Random) -> list[Fault]:
        return [
            *super().faults(dice),
            Fault("the server stopped", lambda: self._signal(signal.SIGSTOP), lambda: self._signal(signal.SIGCONT)),
            Fault("the server killed", self._server.kill, self._server.start),
            Fault("the server ended all sessions", self._end_sessions, _nothing),
        ]

    def left_over(self) -> list[str]:
        if self._mode == "session":
            return run_sql(self._server.admin_url, "SELECT objid FROM pg_locks WHERE locktype = 'advisory'").split()
        held = "SELECT key FROM polylock_lease WHERE owner IS NOT NULL AND expires_at > clock_timestamp()"
        return run_sql(self._server.url, held).split()

    def _signal(self, number: int) -> None:
        """To the server and each of its sessions."""
        for process in _family(self._server.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def _end_sessions(self) -> None:
        ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"
        run_sql(self._server.admin_url, ours)


def _family(process: int) -> list[int]:
    """A process and its children."""
    children = pathlib.Path(f"/proc/{process}/task/{process}/children").read_text()
    return [process, *map(int, children.split())]


class ZookeeperStage(Stage):
    """One ZooKeeper, with sessions that end soon."""

    name = "zookeeper"

    def __init__(self, workers: list[str], network: Network) -> None:
        super().__init__(workers, network)
        self._server = self._stack.enter_context(ZookeeperServer()).ready()
        self._link_all([self._server.port])

    def url(self, worker: str) -> str:
        return f"zookeeper://127.0.0.1:{self._links[worker][0].port}/polylock?session_timeout=1.5"

    def faults(self, dice: random.Random) -> list[Fault]:
        return [
            *super().faults(dice),
            Fault("the server stopped", lambda: self._signal(signal.SIGSTOP), lambda: self._signal(signal.SIGCONT)),
            Fault("the server killed", self._server.kill, self._restart),
        ]

    def left_over(self) -> list[str]:
        client = ZookeeperClient(self._server.url)
        left = list(client.contenders())
        client.close()
        return left

    def _signal(self, number: int) -> None:
        os.kill(self._server.pid, number)

    def _restart(self) -> None:
        self._server.start()
        self._server.ready()


STAGES: dict[str, Callable[[list[str], Network], Stage]] = {
    "file": FileStage,
    "redis": lambda workers, network: RedisStage(workers, network, 1),
    "redlock": lambda workers, network: RedisStage(workers, network, 5),
    "postgres": lambda workers, network: PostgresStage(workers, network, "lease"),
    "zookeeper": ZookeeperStage,
    "postgres-session": lambda workers, network: PostgresStage(workers, network, "session"),
}
