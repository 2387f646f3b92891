"""With redis-py 5 to 8: their own tests of the lock with ours in its place, and ours of the settings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_server import RedisServer

CHECKOUT = Path(__file__).resolve().parents[3]

RELEASES = {"5.2.1": 84, "6.4.0": 90, "7.4.1": 92, "8.1.0": 92}
"""The last release with tests that run by themselves of each major version, and how many tests of locks it has."""

OURS = (
    "test_each_excludes_the_other",
    "test_errors_are_redis_pys",
    "test_extending_and_reacquiring",
    "test_a_lock_without_a_timeout_stays",
    "test_a_dead_server_is_a_connection_error_as_soon_as_the_client_has_enough",
    "test_settings_become_a_url",
    "test_asyncio",
)
"""What of our own tests could depend on the release, too."""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One of its own: these tests flush it."""
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
def source(release: str, tmp_path: Path) -> Path:
    """The unpacked release, downloaded once."""
    kept = CHECKOUT / "build" / "redis-py" / f"redis-{release}"
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        # Without isolation: what it is built with is not downloaded for each.
        subprocess.run(
            [*pip, "--no-build-isolation", "--no-binary=:all:", f"redis=={release}"], cwd=tmp_path, check=True
        )
        with tarfile.open(tmp_path / f"redis-{release}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        shutil.move(tmp_path / kept.name, kept)
    return kept


@pytest.mark.parametrize("release", RELEASES)
def test_with_each_release(release: str, source: Path, server: RedisServer) -> None:
    theirs = ["-p", "stand_in", "--asyncio-mode=auto", f"--redis-url={server.url}/9"]
    assert (
        passed(source, server, *theirs, "tests/test_lock.py", "tests/test_asyncio/test_lock.py") == RELEASES[release]
    )
    file = Path(__file__).with_name("test_redis_lock.py")
    assert passed(source, server, *(f"{file}::{name}" for name in OURS)) == len(OURS)


def passed(source: Path, server: RedisServer, *arguments: str) -> int:
    """Runs tests with the redis-py of `source`; how many passed. None may fail."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{source}:{Path(__file__).with_name('redis_py')}",
        "POLYLOCK_TEST_REDIS": server.url,
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=source, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert found, done.stdout
    return int(found[1])
