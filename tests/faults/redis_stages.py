"""Locks in Redis: one server, five of them, a primary and its replica behind sentinels."""

from __future__ import annotations

import contextlib
import pathlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "servers"))
from clock import Clock
from proxy import Network
from redis_server import RedisClient, RedisError, RedisServer
from stage import LONGEST_TTL, Fault, Stage, how_many

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0")


class RedisStage(Stage):
    """One Redis, or Redlock over several. They keep their data through a restart, but for the first of several."""

    def __init__(self, workers: list[str], network: Network, count: int) -> None:
        super().__init__(workers, network)
        self.name = "redis" if count == 1 else f"redlock of {count}"
        self.keeps = count == 1
        directory = pathlib.Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="polylock-clock-")))
        self._clock = Clock(directory)
        self._servers = [self._stack.enter_context(RedisServer(*DURABLE, environment=self._clock.environment))]
        self._servers += [self._stack.enter_context(RedisServer(*DURABLE)) for _ in range(count - 1)]
        self._link_all([server.port for server in self._servers])

    def url(self, worker: str) -> str:
        # No lock lives longer, so that is how long one that has restarted sits out.
        sits_out = f"?longest_ttl={LONGEST_TTL * 1.1}" if len(self._servers) > 1 else ""
        return ",".join(f"redis://127.0.0.1:{link.port}{sits_out}" for link in self._links[worker])

    def of_servers(self, dice: random.Random) -> list[Fault]:
        some, full = dice.sample(self._servers, dice.randint(1, len(self._servers))), _Full()
        where = how_many(some, self._servers, "server")

        def each(act: Callable[[RedisServer], object]) -> Callable[[], None]:
            def act_on_each() -> None:
                for server in some:
                    act(server)

            return act_on_each

        return [
            Fault(f"{where} killed", each(RedisServer.kill), each(RedisServer.start)),
            Fault(f"{where} stopped", each(RedisServer.pause), each(RedisServer.resume)),
            Fault(f"{where} without scripts", each(lambda server: server.command("SCRIPT", "FLUSH"))),
            Fault(f"{where} cut all connections", each(_cut_all)),
            Fault(f"{where} full of clients", each(full.fill), full.empty),
            *(self._of_the_first(dice) if len(self._servers) > 1 else []),
        ]

    def _of_the_first(self, dice: random.Random) -> list[Fault]:
        """Always the same one: a majority that forgets or whose clocks are set ends Redlock's guarantee."""
        hours = dice.choice([-48, -1, 1, 48])
        return [
            Fault("one server forgot everything", self._forget, self._servers[0].start),
            Fault("one server's clock set", lambda: self._clock.set(hours * 3600), lambda: self._clock.set(0)),
        ]

    def _forget(self) -> None:
        self._servers[0].kill()
        self._servers[0].forget()

    def left_over(self) -> list[str]:
        return sorted({key for server in self._servers for key in _keys(server)})


class SentinelStage(Stage):
    """A primary, its replica and three sentinels. With `replicas=1` what is granted is on both, so a fail-over loses
    nothing of it; without, it may.

    Sentinels say where the servers are, so a worker has a link of its own to each sentinel, and none to the servers.
    """

    def __init__(self, workers: list[str], network: Network, *, replicas: int) -> None:
        super().__init__(workers, network)
        self.name = f"sentinel replicas={replicas}"
        self.excludes = replicas > 0
        self._replicas = replicas
        # They keep there who is whose replica, through a restart too.
        self._servers = [self._stack.enter_context(RedisServer(*DURABLE, configuration="# roles")) for _ in range(2)]
        primary = self._servers[0]
        _follow(self._servers[1], primary)
        _await("the replica", lambda: "state=online" in _info(primary))
        configuration = (
            f"sentinel monitor main 127.0.0.1 {primary.port} 2\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
        )
        self._sentinels = [
            self._stack.enter_context(RedisServer("--sentinel", configuration=configuration)) for _ in range(3)
        ]
        _await("the sentinels", lambda: all(_knows_all(sentinel) for sentinel in self._sentinels))
        self._link_all([sentinel.port for sentinel in self._sentinels])

    def url(self, worker: str) -> str:
        sentinels = ",".join(f"127.0.0.1:{link.port}" for link in self._links[worker])
        return f"redis+sentinel://{sentinels}/main?replicas={self._replicas}"

    def of_servers(self, dice: random.Random) -> list[Fault]:
        primary, sentinel = self._primary(), dice.choice(self._sentinels)
        replica = self._servers[1 - self._servers.index(primary)]

        def change() -> None:
            # They may be about to do so, or find the replica too far behind.
            with contextlib.suppress(RedisError):
                sentinel.command("SENTINEL", "FAILOVER", "main")

        def back(mend: Callable[[], None] | None = None) -> Callable[[], None]:
            def mended() -> None:
                if mend is not None:
                    mend()
                self._demote(primary)

            return mended

        long = 2 * LONGEST_TTL
        return [
            Fault("the primary killed", primary.kill, back(primary.start), long),
            Fault("the primary stopped", primary.pause, back(primary.resume), long),
            Fault("the sentinels chose another primary", change, back(), long),
            Fault("the replica stopped", replica.pause, replica.resume),
            Fault("the replica killed", replica.kill, replica.start),
            Fault("a sentinel stopped", sentinel.pause, sentinel.resume),
        ]

    def _primary(self) -> RedisServer:
        """As most sentinels have it."""
        named: Counter[int] = Counter()
        for sentinel in self._sentinels:
            address = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
            assert isinstance(address, list) and isinstance(address[1], bytes)
            named[int(address[1])] += 1
        port = named.most_common(1)[0][0]
        return next(server for server in self._servers if server.port == port)

    def _demote(self, old: RedisServer) -> None:
        """The sentinels let who was replaced go on as a primary for ten seconds; we do so for a shorter time."""
        time.sleep(0.5)
        new = self._primary()
        if new is not old:
            _follow(old, new)

    def left_over(self) -> list[str]:
        return _keys(self._primary())


def _keys(server: RedisServer) -> list[str]:
    """Of locks, but not what must outlive them."""
    found = server.command("KEYS", "*")
    assert isinstance(found, list)
    keys = (key.decode() for key in found if isinstance(key, bytes))
    return sorted(key for key in keys if not key.startswith("polylock:fence:"))


def _info(server: RedisServer) -> str:
    found = server.command("INFO", "replication")
    assert isinstance(found, bytes)
    return found.decode()


def _follow(replica: RedisServer, primary: RedisServer) -> None:
    replica.command("REPLICAOF", "127.0.0.1", primary.port)
    replica.command("CONFIG", "REWRITE")


def _knows_all(sentinel: RedisServer) -> bool:
    state = sentinel.command("SENTINEL", "MASTER", "main")
    assert isinstance(state, list)
    found = dict(zip(state[::2], state[1::2], strict=True))
    return (found[b"num-slaves"], found[b"num-other-sentinels"]) == (b"1", b"2")


def _await(what: str, holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not holds():
        if time.monotonic() > limit:
            raise RuntimeError(f"{what}: not there after a minute")
        time.sleep(0.02)


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
