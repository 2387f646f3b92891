"""A plugin for redis-py's own tests: `pytest -p stand_in` has them test our lock in the place of theirs."""

from __future__ import annotations

import asyncio
import sys

import pytest_asyncio
import redis
import redis.asyncio.lock
import redis.lock

import polylock.redis
import polylock.redis.asyncio

sys.modules["redis.lock"] = redis.lock = polylock.redis
sys.modules["redis.asyncio.lock"] = redis.asyncio.lock = polylock.redis.asyncio


@pytest_asyncio.fixture
async def event_loop() -> asyncio.AbstractEventLoop:
    """What the tests of redis-py 5 ask for, and pytest-asyncio had then."""
    return asyncio.get_running_loop()
