"""Servers that fork their workers: gunicorn and Celery, the real ones."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import polylock
from conftest import wait_until

ADD_ONE = """
import functools, os, pathlib, polylock
url, name, counter = os.environ["TEST_URL"], os.environ["TEST_NAME"], pathlib.Path(os.environ["TEST_COUNTER"])

# What the parent holds while it forks its workers.
before = polylock.connect(url)
held = before.acquire(name + ":held", ttl=2)

@functools.cache
def locks(process):
    return polylock.connect(url)

def add_one():
    assert not held.is_held  # the parent's
    with locks(os.getpid()).lock(name, ttl=10, wait=60) as lease:
        counter.write_text(str(int(counter.read_text()) + 1))
        return lease.fencing_token
"""

GUNICORN = """
import glob, time

def app(environ, start_response):
    # The first worker waits for a second one, or it might be alone until all is done.
    pathlib.Path(f"worker.{os.getpid()}").touch()
    while len(glob.glob("worker.*")) < 2:
        time.sleep(0.01)
    token = add_one()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {token}".encode()]
"""

CELERY = """
import celery
app = celery.Celery("jobs", broker=os.environ["TEST_BROKER"])
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)
# Of its own: other tests use the same broker at the same time.
app.conf.task_default_queue = name

@app.task
def job():
    add_one()
"""


@contextmanager
def running(directory: Path, command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server in `directory`, and ends it in the way that such a server is told to."""
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=directory, env=os.environ | environment, stdout=log, stderr=log
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (directory / "log").read_text()
    finally:
        process.kill()
        process.wait()


def prepared(directory: Path, url: str, name: str, code: str) -> dict[str, str]:
    if not polylock.connect(url).capabilities.across_processes:
        pytest.skip("excludes nobody else")
    (directory / "jobs.py").write_text(ADD_ONE + code)
    (directory / "counter").write_text("0")
    return {"TEST_URL": url, "TEST_NAME": name, "TEST_COUNTER": str(directory / "counter")}


def assert_still_held_by_the_parent(url: str, name: str, pid: int) -> None:
    holder = polylock.connect(url).inspect(name + ":held")
    assert holder is not None
    assert holder.pid == pid


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.host)


def listens(path: Path) -> bool:
    """Whether a server takes connections there: its socket exists a moment before that."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_gunicorn_with_preloading(url: str, name: str, tmp_path: Path) -> None:
    environment = prepared(tmp_path, url, name, GUNICORN)
    socket_path = tmp_path / "socket"
    command = ["gunicorn", "jobs:app", "--preload", "--workers=3", f"--bind=unix:{socket_path}"]

    def request(_: int) -> tuple[int, int]:
        connection = Connection(str(socket_path))
        connection.request("GET", "/")
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        assert response.status == 200, body
        pid, token = body.split()
        return int(pid), int(token)

    with running(tmp_path, command, **environment) as server:
        wait_until(lambda: listens(socket_path), 30)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(request, range(60)))
        assert (tmp_path / "counter").read_text() == "60"
        assert len({token for _, token in answers}) == 60
        assert len({pid for pid, _ in answers}) > 1
        assert_still_held_by_the_parent(url, name, server.pid)
    assert polylock.connect(url).inspect(name + ":held") is None


def test_celery_prefork(url: str, name: str, tmp_path: Path) -> None:
    redis = os.environ.get("POLYLOCK_TEST_REDIS")
    if redis is None:
        pytest.skip("Celery needs a broker")
    environment = prepared(tmp_path, url, name, CELERY)
    environment["TEST_BROKER"] = f"{redis}/5"
    command = ["celery", "-A", "jobs", "worker", "--pool=prefork", "--concurrency=3", "--without-mingle"]
    with running(tmp_path, command, **environment) as server:
        sender = (
            "import celery, os\n"
            "app = celery.Celery('jobs', broker=os.environ['TEST_BROKER'])\n"
            "for _ in range(40): app.send_task('jobs.job', queue=os.environ['TEST_NAME'])\n"
        )
        subprocess.run([sys.executable, "-c", sender], env=os.environ | environment, check=True, timeout=60)
        counter = tmp_path / "counter"
        wait_until(lambda: counter.read_text() == "40", 60)
        assert_still_held_by_the_parent(url, name, server.pid)
