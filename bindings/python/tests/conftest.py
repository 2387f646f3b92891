"""What the tests share: where locks are kept, and names of their own."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import polylock

# Real servers, which some of them start.
sys.path.append(str(Path(__file__).resolve().parents[3] / "tests" / "servers"))

URLS = os.environ.get("POLYLOCK_TEST_URLS", "memory:").split()
_runs = itertools.count()


def unique() -> str:
    """A name that no other test, process or language uses."""
    return f"python-{os.getpid()}-{next(_runs)}"


@pytest.fixture(params=URLS, ids=lambda url: url.split(":", 1)[0])
def url(request: pytest.FixtureRequest) -> str:
    """Each place where locks are kept; managers on it share a store."""
    found: str = request.param
    return f"memory:{unique()}" if found == "memory:" else found


@pytest.fixture
def name() -> str:
    """A resource of this test alone."""
    return unique()


@pytest.fixture
def memory() -> str:
    """A store of this test alone, that needs no server."""
    return f"memory:{unique()}"


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Returns once `condition` holds; fails if that takes too long even for a loaded machine."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it does not come to that"
        time.sleep(0.005)


def assert_free(url: str, name: str) -> None:
    """Nobody holds `name`, at the latest when releases in the background are done."""
    with polylock.connect(url) as locks:
        wait_until(lambda: locks.inspect(name) is None)
