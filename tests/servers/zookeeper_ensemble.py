#!/usr/bin/env python3
"""Three ZooKeeper servers that can be killed, and cut off from each other without their clients noticing.

Prints `ready PORT PORT PORT` (for clients, on 127.0.0.1) and then obeys its standard input, a command a line; each is
answered by a line. Ends, with all its servers, at the end of the input.

    leader      the number of the one that leads, 1 to 3
    cut N       N and the others hear nothing of each other any more; no connection is closed
    heal        undoes that, once those who were cut off have noticed: what follows begins from a state that is known
    stop N      it does nothing any more, but its connections stay
    resume N    lets it go on
    kill N      without goodbye
    start N     brings it back
    settle      waits until all that run serve clients

Each server knows the others by names of its own (a hosts file for each Java), so that whatever one says to another goes
through a proxy here: server I reaches server J at 127.0.I.J, where J itself listens at 127.0.J.J.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator

from redis_server import free_port
from zookeeper_server import JavaServer

SIZE = 3
# Short ticks: sessions of two seconds are ten of them. A server notices after as many ticks that it is cut off, and
# answers its clients until then: that is as long as those sessions last.
LIMITS = ["tickTime=200", "initLimit=10", "syncLimit=10", "minSessionTimeout=1000", "maxSessionTimeout=60000"]
# Who finds nobody to vote with asks again after twice the time, up to a minute.
ELECTIONS = "-Dzookeeper.fastleader.maxNotificationInterval=400"
SETTLED_WITHIN = 90.0


def others(number: int) -> Iterator[int]:
    return (other for other in range(1, SIZE + 1) if other != number)


class Member:
    """One server. It keeps its ports and its data from start to start."""

    def __init__(self, number: int, directory: pathlib.Path) -> None:
        self.number = number
        self.client, self.quorum, self.election = free_port(), free_port(), free_port()
        self.directory = directory / str(number)
        self.directory.mkdir()
        self.server: JavaServer | None = None

    def start(self, members: list[Member]) -> None:
        hosts = self.directory / "hosts"
        known = range(1, SIZE + 1)
        hosts.write_text("".join(f"127.0.{self.number}.{other} member{other}\n" for other in known))
        (self.directory / "myid").write_text(f"{self.number}\n")
        lines = [f"server.{other.number}=member{other.number}:{other.quorum}:{other.election}" for other in members]
        self.server = JavaServer(
            self.directory, self.client, [*LIMITS, *lines], [f"-Djdk.net.hosts.file={hosts}", ELECTIONS]
        )

    def kill(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server = None

    def signal(self, number: int) -> None:
        if self.server is not None:
            self.server.process.send_signal(number)

    async def mode(self) -> str:
        """`leader`, `follower`, or nothing while it serves nobody."""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.client)
                try:
                    writer.write(b"srvr")
                    said = (await reader.read()).decode()
                finally:
                    writer.close()
                return said.partition("Mode: ")[2].partition("\n")[0]
        return ""


class Network:
    """The proxies between the servers."""

    def __init__(self) -> None:
        self.alone: set[int] = set()
        self._writers: dict[asyncio.StreamWriter, tuple[int, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def lay(self, members: list[Member]) -> None:
        for one in members:
            for other in members:
                if one is not other:
                    for port in (other.quorum, other.election):
                        await self._listen(one.number, other.number, port)

    async def _listen(self, one: int, other: int, port: int) -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers[writer] = (one, other)
            if self._is_cut(one, other):
                return  # it hears nothing, not even that there is nobody
            try:
                there, here = await asyncio.open_connection(f"127.0.{other}.{other}", port)
            except OSError:
                self._forget(writer)
                return
            self._writers[here] = (one, other)
            for source, sink in ((reader, here), (there, writer)):
                task = asyncio.create_task(self._pass(source, sink, one, other))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        await asyncio.start_server(connected, f"127.0.{one}.{other}", port)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, one: int, other: int) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if self._is_cut(one, other):
                    return
                sink.write(data)
                await sink.drain()
        if not self._is_cut(one, other):
            self._forget(sink)

    def _is_cut(self, one: int, other: int) -> bool:
        return one in self.alone or other in self.alone

    def _forget(self, writer: asyncio.StreamWriter) -> None:
        self._writers.pop(writer, None)
        writer.close()

    def cut(self, number: int) -> None:
        self.alone.add(number)

    def heal(self) -> None:
        """What was said meanwhile is lost, so the connections that were cut are closed."""
        for writer, (one, other) in list(self._writers.items()):
            if self._is_cut(one, other):
                self._writers.pop(writer)
                writer.transport.abort()
        self.alone.clear()


class Ensemble:
    """The servers and the network between them."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.members = [Member(number, directory) for number in range(1, SIZE + 1)]
        self.network = Network()

    async def start(self) -> None:
        await self.network.lay(self.members)
        for member in self.members:
            member.start(self.members)
        await self.settle()

    async def settle(self) -> str:
        async with asyncio.timeout(SETTLED_WITHIN):
            running = [member for member in self.members if member.server is not None]
            while "" in await asyncio.gather(*(member.mode() for member in running)):
                await asyncio.sleep(0.02)
        return "ok"

    async def heal(self) -> None:
        async with asyncio.timeout(SETTLED_WITHIN):
            for number in self.network.alone:
                while await self.members[number - 1].mode():
                    await asyncio.sleep(0.02)
        self.network.heal()

    async def leader(self) -> str:
        async with asyncio.timeout(SETTLED_WITHIN):
            while True:
                modes = await asyncio.gather(*(member.mode() for member in self.members))
                if "leader" in modes:
                    return str(modes.index("leader") + 1)
                await asyncio.sleep(0.02)

    async def obey(self, command: str) -> str:
        match command.split():
            case ["leader"]:
                return await self.leader()
            case ["settle"]:
                return await self.settle()
            case ["cut", number]:
                self.network.cut(int(number))
            case ["heal"]:
                await self.heal()
            case ["stop", number]:
                self.members[int(number) - 1].signal(signal.SIGSTOP)
            case ["resume", number]:
                self.members[int(number) - 1].signal(signal.SIGCONT)
            case ["kill", number]:
                self.members[int(number) - 1].kill()
            case ["start", number]:
                self.members[int(number) - 1].start(self.members)
            case _:
                return f"what is {command!r}?"
        return "ok"

    def stop(self) -> None:
        for member in self.members:
            member.kill()


async def main() -> None:
    directory = pathlib.Path(tempfile.mkdtemp(prefix="polylock-ensemble-"))
    ensemble = Ensemble(directory)
    try:
        await ensemble.start()
        print("ready", *(member.client for member in ensemble.members), flush=True)
        commands = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(commands)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        while line := await commands.readline():
            print(await ensemble.obey(line.decode().strip()), flush=True)
    finally:
        ensemble.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(main())
