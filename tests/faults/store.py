"""The guarded store: what a lock protects, and what knows better than a late holder.

It takes lines `NAME TOKEN` by a socket and answers `ok`, or `stale` if it has seen a greater token for that name.
"""

from __future__ import annotations

import pathlib
import socketserver
import threading
from collections import defaultdict


class Store:
    """Serves until it is closed."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.accepted = 0
        self.refused = 0
        self._greatest: dict[str, int] = defaultdict(int)
        self._lock = threading.Lock()
        store = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    name, token = line.decode().split()
                    self.wfile.write(f"{store.write(name, int(token))}\n".encode())

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A worker that was killed leaves a broken connection: nothing to say about."""

        self._server = Server(str(path), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def write(self, name: str, token: int) -> str:
        with self._lock:
            if token < self._greatest[name]:
                self.refused += 1
                return "stale"
            self._greatest[name] = token
            self.accepted += 1
            return "ok"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
