"""The package as a whole: what importing does, the two APIs side by side, errors, documentation."""

from __future__ import annotations

import asyncio
import doctest
import gc
import inspect
import os
import pickle
import queue
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import polylock
import polylock.asyncio
from polylock import _errors, _native
from polylock._base import LeaseBase, LockBase, ManagerBase


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def test_importing_and_connecting_start_no_thread() -> None:
    done = python(
        """
import os, polylock, polylock.asyncio
polylock.connect("memory:"), polylock.connect("redis://127.0.0.1:1"), polylock.asyncio.connect("memory:")
print(len(os.listdir("/proc/self/task")), [l for l in open("/proc/self/status") if l.startswith("Threads")])
"""
    )
    assert done.stdout.split() == ["1", "['Threads:\\t1\\n']"]


def test_importing_imports_nothing_that_takes_long() -> None:
    slow = {
        "asyncio",
        "dataclasses",
        "datetime",
        "inspect",
        "json",
        "logging",
        "pathlib",
        "random",
        "socket",
        "ssl",
        "subprocess",
    }
    code = "import sys; before = set(sys.modules); import polylock; print(*set(sys.modules) - before); "
    done = python(code + "polylock.asyncio.connect('memory:')")
    imported = done.stdout.split()
    assert "polylock._native" in imported
    assert not slow.intersection(imported)


@pytest.mark.parametrize("name", ["LockManager", "Lock", "Lease", "connect"])
def test_both_apis_are_the_same(name: str) -> None:
    blocking, loop = getattr(polylock, name), getattr(polylock.asyncio, name)
    if not isinstance(blocking, type):
        assert parameters(blocking) == parameters(loop)
        return
    public = {attribute for attribute in dir(blocking) if not attribute.startswith("_")}
    assert public == {attribute for attribute in dir(loop) if not attribute.startswith("_")}
    for attribute in public:
        ours, theirs = inspect.getattr_static(blocking, attribute), inspect.getattr_static(loop, attribute)
        assert type(ours) is type(theirs), attribute
        if inspect.isfunction(ours):
            assert parameters(ours) == parameters(theirs), attribute
    assert hasattr(blocking, "__enter__") == hasattr(loop, "__aenter__")
    assert not hasattr(loop, "__enter__")


def parameters(function: Any) -> list[tuple[str, Any, Any, Any]]:
    found = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default, each.annotation) for each in found]


def test_both_modules_offer_the_same_names() -> None:
    assert set(polylock.__all__) - {"__version__"} == set(polylock.asyncio.__all__)


def test_errors_have_the_engines_names_and_numbers() -> None:
    kinds = dict(_native.error_kinds())
    classes = {cls.code: cls for cls in _errors._BY_KIND.values()}
    # A handle is C's.
    assert {code: cls.kind for code, cls in classes.items()} == {
        code: kind for code, kind in kinds.items() if kind != "InvalidHandle"
    }
    for cls in classes.values():
        assert issubclass(cls, polylock.Error)
        assert getattr(polylock, cls.__name__) is cls
    assert issubclass(polylock.AcquireTimeout, TimeoutError)
    assert issubclass(polylock.Unavailable, ConnectionError)
    assert issubclass(polylock.InvalidArgument, ValueError)
    assert [cls.__name__ for cls in classes.values() if cls("x").retryable] == ["AcquireTimeout", "Unavailable"]


def test_errors_can_be_pickled() -> None:
    error = polylock.Unavailable("no", resource="r", causes=("a", "b"))
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.resource, twin.causes, twin.kind) == ("no", "r", ("a", "b"), "Unavailable")


def test_a_panic_is_an_ordinary_exception() -> None:
    with pytest.raises(polylock.InternalError, match="panic: oops"):
        _native.panic_for_test("oops")


def documented(module: ModuleType) -> dict[str, Any]:
    """The public classes and functions of `module`, and what is public in the classes."""
    found = {}
    for name in module.__all__:
        value = getattr(module, name)
        if module is not polylock and value is getattr(polylock, name):
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            found[name] = value
        if inspect.isclass(value) and issubclass(value, (LeaseBase, LockBase, ManagerBase, Exception)):
            own = [base for base in value.__mro__ if base.__module__.split(".")[0] == "polylock"]
            members = {key: member for base in reversed(own) for key, member in vars(base).items()}
            found |= {f"{name}.{key}": member for key, member in members.items() if is_api(key, member)}
    return found


def is_api(key: str, member: object) -> bool:
    return key[0] != "_" and (inspect.isfunction(member) or isinstance(member, property))


@pytest.mark.parametrize("module", [polylock, polylock.asyncio], ids=lambda module: module.__name__)
def test_every_public_name_is_documented_with_an_example_that_runs(module: ModuleType) -> None:
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    names = documented(module)
    assert len(names) > 25
    for name, value in names.items():
        assert inspect.getdoc(value), name
        locks = polylock.connect("memory:")
        context = {"asyncio": asyncio, "os": os, "queue": queue, "time": time, "locks": locks} | vars(module)
        if not inspect.iscoroutinefunction(value):
            # What the examples of blocking code begin with.
            context["lease"] = locks.acquire("invoice:42", ttl=10)
        examples = [test for test in finder.find(value, name, globs=context, module=False) if test.examples]
        assert examples, f"{name} has no example"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # not every example shows the release
            for test in examples:
                assert runner.run(test).failed == 0
            locks.close()
            gc.collect()


def test_the_readme_runs() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    assert "charging under" in python("\n".join(blocks), "-W", "error").stdout


def test_the_version_is_the_crates() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", polylock.__version__)


def test_a_second_interpreter_is_refused() -> None:
    code = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import polylock
other = interpreters.create()
try:
    failed = interpreters.run_string(other, "import polylock")
except interpreters.RunFailedError as error:
    failed = error
print(failed)
interpreters.destroy(other)
try:
    polylock.connect("memory:").acquire("r", ttl=-1)
except polylock.InvalidArgument:
    print("still works")
"""
    said = python(code, "-W", "error").stdout
    assert "ImportError" in said
    assert "still works" in said
