"""The examples of the checkout, each as it would be used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import polylock
from conftest import unique, wait_until

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "python"


@pytest.fixture
def locks_in_files(tmp_path: Path) -> str:
    return f"file://{tmp_path}/locks"


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", *arguments],
        cwd=EXAMPLES,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its status and what it printed."""
    output, errors = process.communicate(timeout=60)
    return process.returncode, output + errors


def test_basic() -> None:
    status, output = finished(start("basic.py"))
    assert status == 0, output
    assert "nobody else can" in output


def test_counter(tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    status, output = finished(start("counter.py", "memory:", str(number), "3"))
    assert status == 0, output
    found = json.loads(output)
    assert (found["acquisitions"], int(number.read_text())) == (3, 3)
    assert found["tokens"] == sorted(set(found["tokens"]))


def test_cron_job(locks_in_files: str) -> None:
    first = start("cron_job.py", locks_in_files, "3")
    with polylock.connect(locks_in_files) as locks:
        wait_until(lambda: locks.inspect("cron:clean-up") is not None)
    second = start("cron_job.py", locks_in_files)
    assert finished(second) == (0, "another host is at it\n")
    status, output = finished(first)
    assert status == 0
    assert output.startswith("cleaned up under")


def test_leader(locks_in_files: str) -> None:
    with polylock.connect(locks_in_files) as locks:
        workers = [start("leader.py", locks_in_files, name) for name in ("ada", "bob", "cyd")]
        terms = []
        try:
            for _ in workers:
                wait_until(lambda: (found := locks.inspect("leader")) is not None and found.label not in terms)
                leader = locks.inspect("leader")
                assert leader is not None
                terms.append(leader.label)
                process = workers[["ada", "bob", "cyd"].index(str(leader.label))]
                assert process.stdout is not None
                assert process.stdout.readline().startswith(f"{leader.label} leads, term ")
                process.send_signal(signal.SIGTERM)
                assert finished(process) == (0, f"{leader.label} ends\n")
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        assert sorted(map(str, terms)) == ["ada", "bob", "cyd"]
        assert locks.inspect("leader") is None


def test_django_command(locks_in_files: str) -> None:
    command = ["django_project/manage.py", "settle", "7"]
    first = start(*command, "--seconds=5", LOCKS=locks_in_files)
    with polylock.connect(locks_in_files) as locks:
        wait_until(lambda: locks.inspect("settle:7") is not None)
    status, output = finished(start(*command, LOCKS=locks_in_files))
    assert (status, output.strip()) == (1, "CommandError: account 7 is being settled already")
    status, output = finished(first)
    assert status == 0
    assert output.startswith("settled 7 under")


@pytest.fixture
def fastapi(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("LOCKS", f"memory:{unique()}")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import fastapi_endpoint  # type: ignore[import-not-found]

    yield fastapi_endpoint
    fastapi_endpoint.charged.clear()


def test_fastapi_endpoint(fastapi: Any) -> None:
    from fastapi.testclient import TestClient

    with TestClient(fastapi.app) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/orders/5/charge"), range(16)))
        assert sorted(answer.status_code for answer in answers) == [200] + [409] * 15
        # Somebody else is at it for longer than a request waits.
        with polylock.connect(os.environ["LOCKS"]).lock("order:6"):
            answer = client.post("/orders/6/charge")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


def test_celery_task_runs_once(tmp_path: Path) -> None:
    redis = os.environ.get("POLYLOCK_TEST_REDIS")
    if redis is None:
        pytest.skip("Celery needs a broker")
    environment = {"BROKER": f"{redis}/7", "LOCKS": f"{redis}/8", "REPORTS": str(tmp_path)}
    options = ["--pool=prefork", "--concurrency=3", "--without-mingle", "--without-gossip", "--loglevel=INFO"]
    worker = start("-m", "celery", "-A", "celery_once", "worker", *options, **environment)
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.extend(worker.stderr or ()))
    reader.start()
    try:
        days = [f"2026-11-{day:02}" for day in range(1, 6)]
        send = "import celery_once, sys\nfor day in sys.argv[1:] * 4: celery_once.report.delay(day)\n"
        status, errors = finished(start("-c", send, *days, **environment))
        assert status == 0, errors
        wait_until(lambda: sum("succeeded" in line for line in output) == 4 * len(days), 60)
        assert sorted(file.name for file in tmp_path.iterdir()) == days
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    finally:
        worker.kill()
        worker.wait()
        reader.join()
        if worker.stdout and worker.stderr:
            worker.stdout.close()
            worker.stderr.close()
