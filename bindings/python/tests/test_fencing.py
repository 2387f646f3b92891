"""The claim rule in Redis, and the test for any store."""

from __future__ import annotations

import os
import pathlib

import pytest
import redis

import polylock
from conftest import unique
from polylock import fencing

ROOT = pathlib.Path(__file__).resolve().parents[3]
URL = os.environ.get("POLYLOCK_TEST_REDIS", "")


def test_the_script_is_the_engines() -> None:
    assert (ROOT / "core/src/fencing/claim.lua").read_text() == fencing.REDIS_CLAIM
    assert fencing.REDIS_CLAIM in (ROOT / "docs/fencing.md").read_text()


@pytest.mark.skipif(not URL, reason="POLYLOCK_TEST_REDIS says where a server is")
def test_data_in_redis_refuses_zombies() -> None:
    name = unique()
    with redis.Redis.from_url(URL) as client, polylock.connect(URL) as locks:

        def write(token: int) -> None:
            if client.eval(fencing.REDIS_CLAIM, 1, name + ":data", str(token), "x") != 1:
                raise ValueError("too late")

        fencing.check_refuses_zombies(write, locks, name)
        client.delete(name + ":data")


def test_a_store_that_takes_everything_is_found_out() -> None:
    with pytest.raises(AssertionError, match="was taken"):
        fencing.check_refuses_zombies(lambda token: None)
