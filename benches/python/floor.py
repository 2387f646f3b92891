"""The floor: our two scripts over one blocking socket, with nothing around them."""

from __future__ import annotations

import pathlib
import socket
import time
import urllib.parse

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "core" / "src" / "backend" / "redis" / "scripts"
TTL_MS = 30_000
FENCE_TTL_MS = 86_400_000


class Floor:
    """Acquires and releases `name` like the engine does, but looks at no answer."""

    def __init__(self, url: str, name: str) -> None:
        where = urllib.parse.urlsplit(url)
        self._socket = socket.create_connection((where.hostname, where.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._name = name
        self._acquire, self._release = self._load("acquire.lua", "acquire_one.lua"), self._load("release.lua")
        self._pairs = 0

    def pair(self) -> None:
        self._pairs += 1
        owner, now = f"{self._pairs:040x}", time.time()
        fence, record = f"polylock:fence:{{{self._name}}}", f"{now * 1e6:016.0f} {owner} {now * 1000:.0f}\n1\nhost\n"
        limit = int(now * 1000) + TTL_MS
        keys = (3, self._name, fence, f"polylock:writer:{{{self._name}}}")
        self._call("EVALSHA", self._acquire, *keys, owner, TTL_MS, int(now * 1e6), limit, record, FENCE_TTL_MS)
        self._call("EVALSHA", self._release, 1, self._name, owner, f"polylock:wake:{{{self._name}}}")

    def _load(self, *parts: str) -> str:
        reply = self._call("SCRIPT", "LOAD", "".join((SCRIPTS / part).read_text() for part in parts))
        return reply.split(b"\r\n")[1].decode()

    def _call(self, *words: object) -> bytes:
        parts = [str(word).encode() for word in words]
        self._socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
        # The replies are small: they come in one piece.
        reply = self._socket.recv(4096)
        if reply.startswith(b"-"):
            raise RuntimeError(reply.decode())
        return reply
