"""Plays `tests/scenarios/*.scenario` through an `Actor`; see the README there for the format."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytest

import polylock
from conftest import unique

DIRECTORY = Path(__file__).resolve().parents[3] / "tests" / "scenarios"
FILES = sorted(DIRECTORY.glob("*.scenario"))
Keys = dict[str, str]


class Actor(ABC):
    """One who takes part: a manager and its last lease."""

    lease: Any = None
    token_before = 0

    @abstractmethod
    def __init__(self, url: str) -> None: ...
    @abstractmethod
    async def acquire(self, name: str, options: dict[str, Any]) -> str: ...
    @abstractmethod
    async def begin(self, name: str, options: dict[str, Any]) -> None: ...
    @abstractmethod
    async def join(self) -> str: ...
    @abstractmethod
    async def cancel(self) -> str: ...
    @abstractmethod
    async def try_acquire(self, name: str, options: dict[str, Any]) -> str: ...
    @abstractmethod
    async def extend(self, ttl: float | None) -> str: ...
    @abstractmethod
    async def release(self) -> str: ...
    @abstractmethod
    async def lost(self, within: float) -> str: ...
    @abstractmethod
    async def inspect(self, name: str) -> polylock.Holder | None: ...
    @abstractmethod
    async def close(self) -> str: ...
    @abstractmethod
    def waiting(self, name: str) -> int: ...
    @abstractmethod
    def can_inspect(self) -> bool: ...

    def took(self, lease: Any) -> str:
        if lease is None:
            return "busy"
        self.token_before = self.lease.fencing_token if self.lease else 0
        self.lease = lease
        return "ok"


def seconds(milliseconds: str) -> float:
    return float(milliseconds) / 1000


def options(keys: Keys, *, wait: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"ttl": 5.0} | {k: seconds(keys[k]) for k in ("ttl", "max_hold") if k in keys}
    if wait:
        given = keys.get("wait", "none")
        found["wait"] = {"none": 0, "forever": None}[given] if given in ("none", "forever") else seconds(given)
    if "auto_extend" in keys:
        found["auto_extend"] = keys["auto_extend"] == "true"
    if "label" in keys:
        found["label"] = keys["label"]
    return found


class Play:
    """One scenario on one URL."""

    def __init__(self, actor: type[Actor], url: str) -> None:
        self.prefix = unique()
        self.url = f"memory:{self.prefix}" if url == "memory:" else url
        self.make = actor
        self.actors: dict[str, Actor] = {}

    async def run(self, file: Path) -> None:
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        assert lines[0].startswith("name: "), file
        for need in " ".join(line[7:] for line in lines if line.startswith("needs: ")).split():
            if need == "break" and self.url.startswith("memory:"):
                pytest.skip("memory: cannot be broken")
            if need == "inspect" and not self.make(self.url).can_inspect():
                pytest.skip("no inspection")
            assert need in ("break", "inspect"), need
        steps = [line for line in lines if not line.startswith(("name: ", "needs: "))]
        assert steps, file
        try:
            for step in steps:
                action, _, expected = step.partition(" => ")
                try:
                    outcome = await asyncio.wait_for(self.act(action, expected), 60)
                except polylock.Error as error:
                    argument = "resource" if error.argument == "name" else error.argument
                    outcome = f"{error.kind}:{argument}" if argument else error.kind
                assert fits(outcome, expected), f"{file.name}: {step} (on {self.url}): {outcome}"
        finally:
            for actor in self.actors.values():
                await actor.close()

    def real(self, word: str) -> str:
        special = {"<empty>": "", "<long>": "x" * 1025, "<nul>": "a\0b", "<invalid-utf8>": "\udcff\udcfe"}
        return special.get(word, f"{self.prefix}:{word}")

    async def act(self, action: str, expected: str) -> str:
        words = [word for word in action.split(" ") if not is_key(word)]
        keys = dict(word.split("=", 1) for word in action.split(" ") if is_key(word))
        match words:
            case ["sleep", milliseconds]:
                await asyncio.sleep(seconds(milliseconds))
                return ""
            case ["break", word]:
                subprocess.run([os.environ["POLYLOCK_TEST_BREAK"], self.real(word)], check=True)
                return ""
            case [who, "newer_than", other]:
                newer = self.actors[who].lease.fencing_token > self.actors[other].lease.fencing_token
                return str(newer).lower()
        actor = self.actors.setdefault(words[0], self.make(self.url))
        match words[1:]:
            case ["acquire", word, "&"]:
                await actor.begin(self.real(word), options(keys, wait=True))
                return ""
            case ["acquire", word]:
                return await actor.acquire(self.real(word), options(keys, wait=True))
            case ["try", word]:
                return await actor.try_acquire(self.real(word), options(keys, wait=False))
            case ["inspect", word]:
                holder = await actor.inspect(self.real(word))
                return "free" if holder is None else f"held:{holder.label}" if holder.label else "held"
            case ["waiting", word]:
                limit = time.monotonic() + 5
                while (count := actor.waiting(self.real(word))) != int(expected) and time.monotonic() < limit:
                    await asyncio.sleep(0.005)
                return str(count)
            case ["extend"]:
                return await actor.extend(seconds(keys["ttl"]) if "ttl" in keys else None)
            case ["lost"]:
                return await actor.lost(seconds(keys["within"]))
            case ["held"]:
                return str(actor.lease.is_held).lower()
            case ["remaining"]:
                return str(int(actor.lease.remaining * 1000))
            case ["newer_than_before"]:
                return str(actor.lease.fencing_token > actor.token_before).lower()
            case ["join" | "cancel" | "release" | "close" as action]:
                outcome: str = await getattr(actor, action)()
                return outcome
        raise AssertionError(f"unknown step {action!r}")


def is_key(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and key.replace("_", "").isalpha() and key.islower()


def fits(outcome: str, expected: str) -> bool:
    least, dots, most = expected.partition("..")
    return int(least) <= int(outcome) <= int(most) if dots else outcome == expected
