"""A real redis-server on a free loopback port, for tests that start, pause, kill and restart one.

Needs nothing but Python's own library and the `redis-server` program, so every language's tests can use it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable
from types import TracebackType
from typing import Union

Reply = Union[None, int, bytes, "list[Reply]"]

# A start takes some 50 ms; a loaded machine gets this many seconds before it counts as failed.
START_LIMIT = 20.0
PR_SET_PDEATHSIG = 1


class RedisError(Exception):
    """What the server answered with `-ERR …`."""


class RedisClient:
    """One blocking connection; sends a command and reads its reply."""

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        """To `redis://[user:password@]host[:port][/database]`."""
        where = urllib.parse.urlsplit(url)
        self._socket = socket.create_connection((where.hostname or "127.0.0.1", where.port or 6379), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb")
        if where.password:
            self.command("AUTH", *map(urllib.parse.unquote, filter(None, (where.username, where.password))))
        if where.path.strip("/"):
            self.command("SELECT", where.path.strip("/"))

    def command(self, *words: str | bytes | int) -> Reply:
        """Raises RedisError for an error reply and OSError if the connection breaks."""
        parts = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)
        self._socket.sendall(request)
        return self._reply()

    def close(self) -> None:
        self._replies.close()
        self._socket.close()

    def _reply(self) -> Reply:
        line = self._replies.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RedisError(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._replies.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self._reply() for _ in range(int(rest))]
        raise ConnectionError(f"not a reply: {line!r}")


class RedisServer:
    """A redis-server of our own, kept in a temporary directory.

    `options` are more command line options of redis-server, as in `("--maxmemory", "1mb")`. Nothing is saved to
    disk unless they say so; a server that saves finds its data again after `kill` and `start`. `configuration` is the
    text of a file for that, which the server may rewrite; a sentinel needs one. `environment` comes on top of ours.
    """

    def __init__(
        self,
        *options: str,
        password: str | None = None,
        configuration: str = "",
        environment: dict[str, str] | None = None,
    ) -> None:
        self.password = password
        self.options = options
        self.port = 0
        self._environment = environment or {}
        self._directory = tempfile.mkdtemp(prefix="polylock-redis-")
        self._configuration: list[str] = []
        if configuration:
            self._configuration = [os.path.join(self._directory, "configuration")]
            with open(self._configuration[0], "w") as file:
                file.write(configuration)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return self._url(self.port)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    def start(self) -> None:
        """Starts it, on the port it had before if there was one, and waits until it answers."""
        if self._process is not None:
            raise RuntimeError("the server runs already")
        # Somebody else may take a port between our looking and the server's binding it: then try another.
        tries = 1 if self.port else 10
        for _ in range(tries):
            port = self.port or free_port()
            self._process = self._launch(port)
            if self._answers(port):
                self.port = port
                return
            self.kill()
        raise RuntimeError(f"redis-server did not start: {self._log()}")

    def client(self, timeout: float = 10.0) -> RedisClient:
        return RedisClient(self.url, timeout)

    def command(self, *words: str | bytes | int) -> Reply:
        """One command on a connection of its own."""
        client = self.client()
        try:
            return client.command(*words)
        finally:
            client.close()

    def pause(self) -> None:
        """Stops it in its tracks: it accepts connections (the system does) but answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kills it without goodbye and waits until it is gone. `start` brings it back."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Removes what a server that was killed kept on disk."""
        shutil.rmtree(self._directory)
        os.mkdir(self._directory)

    def stop(self) -> None:
        """Kills it and removes what it kept on disk."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _url(self, port: int) -> str:
        user = "" if self.password is None else f":{self.password}@"
        return f"redis://{user}127.0.0.1:{port}"

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        command = ["redis-server", *self._configuration, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no", "--dir", self._directory, *self.options]
        if self.password is not None:
            command += ["--requirepass", self.password]
        with open(os.path.join(self._directory, "log"), "wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                # Ctrl-C is for whoever runs the tests; servers are stopped in order.
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )

    def _answers(self, port: int) -> bool:
        """Waits until this very process answers; false if it ended instead."""
        limit = time.monotonic() + START_LIMIT
        while time.monotonic() < limit and self._process is not None and self._process.poll() is None:
            try:
                client = RedisClient(self._url(port), timeout=1.0)
                try:
                    info = client.command("INFO", "server")
                finally:
                    client.close()
                # A port that somebody else's server listens on answers too, but not with our process id.
                return isinstance(info, bytes) and b"process_id:%d\r" % self._process.pid in info
            except (OSError, RedisError):
                time.sleep(0.01)
        return False

    def _log(self) -> str:
        with open(os.path.join(self._directory, "log"), errors="replace") as log:
            return log.read()[-2000:]


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def _on_main_thread() -> bool:
    # The system looks at the thread that started the child, so a helper thread's end would kill the server.
    return threading.current_thread() is threading.main_thread()


def die_with_parent() -> Callable[[], None] | None:
    """What a new server calls first, so that it goes too should the tests be killed without a chance to clean up."""
    return _die_with_parent if _on_main_thread() else None


_LIBC = ctypes.CDLL(None)


def _die_with_parent() -> None:
    """Runs in the new process."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
