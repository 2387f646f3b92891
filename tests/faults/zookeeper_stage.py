"""Locks in a ZooKeeper ensemble of three."""

from __future__ import annotations

import pathlib
import random
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "servers"))
from proxy import Network, Weather
from stage import Fault, Stage
from zookeeper_server import ZookeeperClient

ENSEMBLE = pathlib.Path(__file__).resolve().parent.parent / "servers/zookeeper_ensemble.py"
ALL = (1, 2, 3)
# In seconds. A worker that hears nothing for so long has lost what it held.
SESSION = 1.5


class ZookeeperStage(Stage):
    """Members are killed, stopped and cut off from each other. Sessions end soon."""

    name = "zookeeper"

    def __init__(self, workers: list[str], network: Network) -> None:
        super().__init__(workers, network)
        self._ensemble = subprocess.Popen([ENSEMBLE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._stack.callback(self._end)
        self._ports = [int(port) for port in self._line().removeprefix("ready ").split()]
        self._link_all(self._ports)

    def url(self, worker: str) -> str:
        hosts = ",".join(f"127.0.0.1:{link.port}" for link in self._links[worker])
        return f"zookeeper://{hosts}/polylock?session_timeout={SESSION}"

    def of_servers(self, dice: random.Random) -> list[Fault]:
        leader = int(self._ask("leader"))
        follower = dice.choice([member for member in ALL if member != leader])

        def fault(what: str, begin: str, end: str, *members: int, lasts: float = 0.0) -> Fault:
            def mend() -> None:
                self._each(end, members)
                self._ask("settle")

            return Fault(what, lambda: self._each(begin, members), mend, lasts)

        # Those who are left agree on another leader within a second or two.
        return [
            fault("the leader killed", "kill {}", "start {}", leader, lasts=2.0),
            fault("the leader stopped", "stop {}", "resume {}", leader, lasts=2.0),
            fault("the leader cut off from the others", "cut {}", "heal", leader, lasts=2.0),
            fault("a follower cut off from the others", "cut {}", "heal", follower, lasts=2.0),
            fault("a follower killed", "kill {}", "start {}", follower),
            fault("a follower stopped", "stop {}", "resume {}", follower),
            fault("all members killed", "kill {}", "start {}", *ALL),
        ]

    def of_links(self, dice: random.Random) -> list[Fault]:
        worker = dice.choice(list(self._links))
        links = self._links[worker]
        ended = Fault(
            "the session of one worker expired",
            lambda: self._network.set(links, Weather.SILENT),
            lambda: self._network.set(links, Weather.CALM),
            2 * SESSION,
            worker,
        )
        return [ended, *super().of_links(dice)]

    def left_over(self) -> list[str]:
        client = ZookeeperClient(f"zookeeper://127.0.0.1:{self._ports[0]}/polylock")
        left = list(client.contenders())
        client.close()
        return left

    def _each(self, order: str, members: tuple[int, ...]) -> None:
        for member in members:
            self._ask(order.format(member))

    def _ask(self, order: str) -> str:
        assert self._ensemble.stdin
        self._ensemble.stdin.write(f"{order}\n")
        self._ensemble.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._ensemble.stdout
        line = self._ensemble.stdout.readline()
        if not line.endswith("\n"):
            raise RuntimeError("the ensemble has ended")
        return line.rstrip("\n")

    def _end(self) -> None:
        """By the end of its input it stops its servers."""
        assert self._ensemble.stdin
        self._ensemble.stdin.close()
        self._ensemble.wait()
