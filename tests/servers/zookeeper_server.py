"""A real ZooKeeper on a free loopback port, and a client that can look around in it.

Needs nothing but Python's own library and Debian's package zookeeper.
"""

from __future__ import annotations

import pathlib
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from types import TracebackType

from redis_server import die_with_parent, free_port

# The first one names most of the others that it needs, but not what TLS needs.
CLASSES = "/usr/share/java/zookeeper.jar:/usr/share/java/netty-codec.jar"
# A start takes about a second; a loaded machine gets this many before it counts as failed.
START_LIMIT = 60.0
# Small and quick to start; nothing has to survive a crash of the machine.
JAVA = ["java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]
JAVA += ["-Dzookeeper.forceSync=no", "-Dzookeeper.preAllocSize=1024"]
# Empty directories go while the tests run, not once in a minute.
JAVA += ["-Dznode.container.checkIntervalMs=200"]

NO_NODE = -101


class ZookeeperError(Exception):
    """What the server answered with a code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"ZooKeeper's error {code}")
        self.code = code


class ZookeeperClient:
    """One blocking connection with a session of its own."""

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        """To `zookeeper://[user:password@]host:port[/path]`."""
        where = urllib.parse.urlsplit(url)
        self.root = where.path.rstrip("/") or "/polylock"
        self._socket = socket.create_connection((where.hostname or "127.0.0.1", where.port or 2181), timeout)
        self._xid = 0
        self._send(struct.pack(">iqiq", 0, 0, 10_000, 0) + _bytes(bytes(16)) + b"\0")
        self._receive()
        if where.username:
            login = f"{urllib.parse.unquote(where.username)}:{urllib.parse.unquote(where.password or '')}"
            self._send(struct.pack(">iii", -4, 100, 0) + _bytes(b"digest") + _bytes(login.encode()))
            self._receive()

    def children(self, path: str) -> list[str]:
        answer = self._call(8, _bytes(path.encode()) + b"\0")
        (count,) = struct.unpack_from(">i", answer)
        names, at = [], 4
        for _ in range(count):
            (length,) = struct.unpack_from(">i", answer, at)
            names.append(answer[at + 4 : at + 4 + length].decode())
            at += 4 + length
        return names

    def create(self, path: str) -> None:
        """A node that stays, open to everybody."""
        everybody = struct.pack(">ii", 1, 31) + _bytes(b"world") + _bytes(b"anyone")
        self._call(1, _bytes(path.encode()) + _bytes(b"") + everybody + struct.pack(">i", 0))

    def delete(self, path: str) -> None:
        self._call(2, _bytes(path.encode()) + struct.pack(">i", -1))

    def contenders(self) -> Iterator[str]:
        """The paths of all who hold or want a lock."""
        for directory in self._children_or_none(self.root):
            for contender in self._children_or_none(f"{self.root}/{directory}"):
                yield f"{self.root}/{directory}/{contender}"

    def close(self) -> None:
        self._call(-11, b"")
        self._socket.close()

    def _children_or_none(self, path: str) -> list[str]:
        try:
            return self.children(path)
        except ZookeeperError as error:
            if error.code == NO_NODE:
                return []
            raise

    def _call(self, operation: int, body: bytes) -> bytes:
        self._xid += 1
        self._send(struct.pack(">ii", self._xid, operation) + body)
        while True:
            answer = self._receive()
            xid, _, code = struct.unpack_from(">iqi", answer)
            if xid == self._xid:
                if code:
                    raise ZookeeperError(code)
                return answer[16:]

    def _send(self, body: bytes) -> None:
        self._socket.sendall(_bytes(body))

    def _receive(self) -> bytes:
        (length,) = struct.unpack(">i", self._read(4))
        return self._read(length)

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self._socket.recv(length - len(data))
            if not part:
                raise ConnectionError("the server closed the connection")
            data += part
        return data


def _bytes(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


def directory_of(root: str, name: str) -> str:
    """Where the library keeps the lock of that name."""
    plain = name not in (".", "..")
    keep = "-_:@." if plain else "-_:@"
    kept = (chr(b) if b < 128 and (chr(b).isalnum() or chr(b) in keep) else f"%{b:02X}" for b in name.encode())
    return f"{root}/{''.join(kept)}"


class JavaServer:
    """The process of one server."""

    def __init__(self, directory: pathlib.Path, port: int, options: list[str], java: list[str]) -> None:
        """`options` are lines of its configuration, `java` options of Java."""
        config = directory / "zoo.cfg"
        lines = [f"dataDir={directory}", "admin.enableServer=false", "maxClientCnxns=0", *options]
        if not any(line.startswith("secureClientPort=") for line in options):
            lines += [f"clientPort={port}", "clientPortAddress=127.0.0.1"]
        config.write_text("\n".join(lines) + "\n")
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        self.log = directory / "log"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*JAVA, *java, "-cp", CLASSES, main, str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for whoever runs the tests; servers are stopped in order.
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )

    def runs(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Without goodbye."""
        self.process.kill()
        self.process.wait()


class ZookeeperServer:
    """A server of our own, kept in a temporary directory. Making one does not wait until it answers: `ready` does."""

    def __init__(self, *options: str) -> None:
        """`options` are more lines of its configuration."""
        self.port = free_port()
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="polylock-zookeeper-"))
        self._options = ["tickTime=500", "minSessionTimeout=1000", "maxSessionTimeout=60000", *options]
        self._server: JavaServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"zookeeper://127.0.0.1:{self.port}/polylock"

    def client(self) -> ZookeeperClient:
        return ZookeeperClient(self.url)

    @property
    def pid(self) -> int:
        if self._server is None:
            raise RuntimeError("the server does not run")
        return self._server.process.pid

    def start(self) -> None:
        self._server = JavaServer(self.directory, self.port, self._options, [])

    def ready(self) -> ZookeeperServer:
        """Waits until it answers."""
        limit = time.monotonic() + START_LIMIT
        # One that has just begun to listen may lose a session that is asked for: then it says nothing.
        patience = 0.25
        while time.monotonic() < limit and self._server is not None and self._server.runs():
            try:
                patience = min(patience * 2, 10.0)
                client = ZookeeperClient(self.url, patience)
                client.children("/")
                client.close()
                return self
            except (OSError, ZookeeperError):
                time.sleep(0.02)
        log = (self.directory / "log").read_text(errors="replace")
        raise RuntimeError(f"ZooKeeper did not start: {log[-2000:]}")

    def kill(self) -> None:
        """Kills it without goodbye. `start` brings it back."""
        if self._server is not None:
            self._server.kill()
            self._server = None

    def stop(self) -> None:
        """Kills it and removes what it kept on disk."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> ZookeeperServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
