#!/usr/bin/env python3
"""Forwards TCP with a delay: `delay_proxy.py MILLISECONDS HOST:PORT…`.

Prints its ports, one a line, and runs until stdin ends. Half of the delay is in each direction. Bytes are
passed on as they came, however many requests are on their way, as on a long cable: the delay bounds no throughput.
"""

from __future__ import annotations

import collections
import socket
import sys
import threading
import time


def pump(source: socket.socket, target: socket.socket, delay: float) -> None:
    """Passes on what comes from `source`, each piece `delay` seconds after it came."""
    pieces: collections.deque[tuple[float, bytes]] = collections.deque()
    some = threading.Semaphore(0)

    def deliver() -> None:
        while True:
            some.acquire()
            due, piece = pieces.popleft()
            left = due - time.monotonic()
            if left > 0:
                time.sleep(left)
            try:
                if not piece:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(piece)
            except OSError:
                return

    threading.Thread(target=deliver, daemon=True).start()
    while True:
        try:
            piece = source.recv(1 << 16)
        except OSError:
            piece = b""
        pieces.append((time.monotonic() + delay, piece))
        some.release()
        if not piece:
            return


def serve(listener: socket.socket, address: tuple[str, int], delay: float) -> None:
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(address)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=pump, args=(source, target, delay), daemon=True).start()


def main(milliseconds: str, addresses: list[str]) -> None:
    for address in addresses:
        host, port = address.rsplit(":", 1)
        listener = socket.create_server(("127.0.0.1", 0))
        where = (host, int(port))
        delay = float(milliseconds) / 2000
        threading.Thread(target=serve, args=(listener, where, delay), daemon=True).start()
        print(listener.getsockname()[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
