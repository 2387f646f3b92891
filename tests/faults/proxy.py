"""Links between workers and servers that can be cut, silenced and slowed while bytes are on them."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Weather(enum.Enum):
    """What becomes of the bytes on a link."""

    CALM = "calm"
    # Nothing arrives in either direction until it is over; then all of it does, also of those who have given up.
    SILENT = "silent"
    # Requests arrive and are carried out; no reply ever comes back on the connections of that time.
    MUTE = "mute"
    # The other way round: no request ever arrives, and what the server tells by itself does.
    DEAF = "deaf"
    # Connections are cut, and new ones as soon as they are made.
    REFUSED = "refused"
    # Everything takes a while.
    SLOW = "slow"


DELAY = 0.02


class Network:
    """The thread on which the links live."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def link(self, port: int) -> Link:
        """A new link to a server on this port of the loopback interface."""
        link = Link(port)
        self.run(link.listen())
        return link

    def set(self, links: list[Link], weather: Weather) -> None:
        self.run(_set(links, weather))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


async def _set(links: list[Link], weather: Weather) -> None:
    for link in links:
        link.set(weather)


class Link:
    """One worker's way to one server: a port that forwards."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._weather = Weather.CALM
        self._changed = asyncio.Event()
        self._connections: set[_Connection] = set()

    async def listen(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    def set(self, weather: Weather) -> None:
        before, self._weather = self._weather, weather
        # A stream with a hole is of no use any more.
        if weather is Weather.REFUSED or before in (Weather.MUTE, Weather.DEAF):
            for connection in list(self._connections):
                connection.cut()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._weather is Weather.REFUSED:
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            server = await asyncio.open_connection("127.0.0.1", self._target)
            for end in (writer, server[1]):
                end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection([writer, server[1]])
            self._connections.add(connection)
            pumps = [self._pump(reader, server[1], replies=False), self._pump(server[0], writer, replies=True)]
            # One end that closes has the other closed; what is under way from it arrives before.
            for pump in asyncio.as_completed(pumps):
                with contextlib.suppress(OSError):
                    await pump
                connection.close()
            self._connections.discard(connection)
            return
        writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        while data := await reader.read(1 << 16):
            while self._weather is Weather.SILENT:
                await self._changed.wait()
            if self._weather is (Weather.MUTE if replies else Weather.DEAF):
                continue
            if self._weather is Weather.SLOW:
                await asyncio.sleep(DELAY)
            writer.write(data)
            await writer.drain()


class _Connection:
    def __init__(self, ends: list[asyncio.StreamWriter]) -> None:
        self._ends = ends

    def close(self) -> None:
        for end in self._ends:
            end.close()

    def cut(self) -> None:
        for end in self._ends:
            end.transport.abort()
