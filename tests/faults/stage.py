"""What a run takes place on: real servers, links from each worker to each of them, and what can go wrong."""

from __future__ import annotations

import contextlib
import functools
import random
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proxy import Link, Network, Weather

LONGEST_TTL = 1.0
# How long after the last worker has ended something may be left on a server that a fault kept from being asked.
SETTLED_WITHIN = 15.0


def nothing() -> None:
    """It was over at once."""


@dataclass
class Fault:
    """Something that goes wrong, and is mended after a while."""

    name: str
    begin: Callable[[], None]
    end: Callable[[], None] = nothing
    # It would show nothing if it were mended sooner, in seconds.
    lasts: float = 0.0
    # Whose it is: the workers of one language, or all.
    whose: str = ""


class Stage:
    """One backend with its servers."""

    name = ""
    # Whether no two are promised to hold at one time. Where not, the tokens have to grow all the same.
    excludes = True
    # Whether all that is granted stays there, whatever happens: then nobody loses what nobody broke.
    keeps = False
    # Whether locks can be shared, and be semaphores.
    shares = True

    def __init__(self, workers: list[str], network: Network) -> None:
        self._network = network
        self._stack = contextlib.ExitStack()
        self._links: dict[str, list[Link]] = {worker: [] for worker in workers}

    def url(self, worker: str) -> str:
        """Where this worker finds the locks."""
        raise NotImplementedError

    def of_servers(self, dice: random.Random) -> list[Fault]:
        """Of each kind one, at a place that the dice say. A run begins with the first."""
        return []

    def of_links(self, dice: random.Random) -> list[Fault]:
        """One worker is apart from some servers, or all."""
        worker = dice.choice(list(self._links))
        links = self._links[worker]
        if not links:
            return []
        some = dice.sample(links, dice.randint(1, len(links)))
        where = f"{how_many(some, links, 'link')} of one worker"

        change = functools.partial(self._network.set, some)
        calm = functools.partial(change, Weather.CALM)
        found = [
            Fault(f"{where} {weather.value}", functools.partial(change, weather), calm, whose=worker)
            for weather in Weather
            if weather is not Weather.CALM
        ]
        if _can_destroy():
            cut = functools.partial(destroy, [link.port for link in some])
            found.append(Fault(f"{where}: sockets destroyed", cut, whose=worker))
        return found

    def left_over(self) -> list[str]:
        """What is still there of locks when everybody has released all."""
        raise NotImplementedError

    def close(self) -> None:
        self._stack.close()

    def _link_all(self, ports: list[int]) -> None:
        for links in self._links.values():
            links += [self._network.link(port) for port in ports]


def how_many(some: Sequence[object], of: Sequence[object], what: str) -> str:
    if len(of) == 1:
        return f"the {what}"
    if len(some) == len(of):
        return f"all {what}s"
    return f"{'a majority' if 2 * len(some) > len(of) else 'a minority'} of {what}s"


def destroy(ports: list[int]) -> None:
    """The sockets of those who are connected to these ports: both ends learn of it at once."""
    which = " or ".join(f"dport = :{port}" for port in ports)
    # It complains of those that are gone already.
    subprocess.run(["ss", "--kill", "--tcp", f"( {which} )"], capture_output=True)


@functools.cache
def _can_destroy() -> bool:
    """Whether this kernel can (CONFIG_INET_DIAG_DESTROY), and this process may."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        destroy([server.getsockname()[1]])
        try:
            client.send(b"?")
        except ConnectionError:
            return True
    return False
