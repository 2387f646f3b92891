"""Processes: fork, `multiprocessing`, and the many ways in which one can end. Each case is a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import polylock
from conftest import URLS, assert_free

RUNS = int(os.environ.get("POLYLOCK_TEST_RUNS", "3"))
"""How often each ending is played: what goes wrong here goes wrong now and then."""


def run(url: str, name: str, code: str, *, status: int = 0, stderr: str = "") -> str:
    """Runs `code` in a fresh interpreter; its standard output. It must end soon and say nothing unexpected."""
    head = "import os, sys, time, threading, asyncio, polylock, polylock.asyncio\nurl, name = sys.argv[1:]\n"
    command = [sys.executable, "-W", "error", "-c", head + code, url, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert stderr in done.stderr if stderr else not done.stderr, done.stderr
    return done.stdout


NEVER_STOPS = """
locks = polylock.connect(url)
def work():
    while True:
        with locks.lock(name, ttl=60): pass
threading.Thread(target=work, daemon=True).start()
"""

ENDINGS = {
    "held": """
lease = polylock.connect(url).acquire(name, ttl=60)
""",
    "held in a with that sys.exit leaves": """
with polylock.connect(url).lock(name, ttl=60):
    sys.exit(0)
""",
    "held, with a listener": """
lease = polylock.connect(url).acquire(name, ttl=60)
lease.on_lost(print)
""",
    "a daemon thread waiting": """
locks = polylock.connect(url)
lease = locks.acquire(name, ttl=60)
threading.Thread(target=locks.acquire, args=(name,), daemon=True).start()
while locks.waiting(name) != 1: time.sleep(0.001)
""",
    "many daemon threads waiting": """
locks = polylock.connect(url)
lease = locks.acquire(name, ttl=60)
for _ in range(12):
    threading.Thread(target=locks.acquire, args=(name,), daemon=True).start()
while locks.waiting(name) != 12: time.sleep(0.001)
""",
    "a daemon thread that never stops acquiring": f"{NEVER_STOPS}time.sleep(0.05)",
    "a daemon thread that is about to acquire for the first time": NEVER_STOPS,
    "a loop in a daemon thread with an acquire pending": """
locks, held = polylock.asyncio.connect(url), threading.Event()
async def main():
    async with locks.lock(name, ttl=60):
        held.set()
        await locks.acquire(name)
threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
held.wait()
while locks.waiting(name) != 1: time.sleep(0.001)
""",
    "a loop in a daemon thread that never stops acquiring": """
locks, held = polylock.asyncio.connect(url), threading.Event()
async def main():
    while True:
        async with locks.lock(name, ttl=60): held.set()
threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
held.wait()
""",
    "a closed loop and its lease": """
lease = asyncio.run(polylock.asyncio.connect(url).acquire(name, ttl=60))
""",
    "a lease of a loop that was left to the collector": """
loop = asyncio.new_event_loop()
lease = loop.run_until_complete(polylock.asyncio.connect(url).acquire(name, ttl=60))
loop.close()
""",
    "asyncio.run ends with a task pending": """
async def main():
    locks = polylock.asyncio.connect(url)
    global lease, task
    lease = await locks.acquire(name, ttl=60)
    task = asyncio.create_task(locks.acquire(name))
    await asyncio.sleep(0.01)
asyncio.run(main())
""",
    "closed": """
locks = polylock.connect(url)
lease = locks.acquire(name)
locks.close()
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_ends_soon_and_quietly_and_releases(url: str, name: str, ending: str) -> None:
    for _ in range(RUNS):
        began = time.monotonic()
        run(url, name, ENDINGS[ending])
        assert time.monotonic() - began < 15
    if polylock.connect(url).capabilities.across_processes:
        assert_free(url, name)


def test_an_error_that_ends_the_process_is_shown_and_the_lease_released(url: str, name: str) -> None:
    run(url, name, "with polylock.connect(url).lock(name, ttl=60): 1 / 0", status=1, stderr="ZeroDivisionError")
    if polylock.connect(url).capabilities.across_processes:
        assert_free(url, name)


def test_a_pending_acquire_keeps_the_process(url: str, name: str) -> None:
    code = """
locks = polylock.connect(url)
lease = locks.acquire(name, ttl=60)
def work():
    with locks.acquire(name, wait=30): print("got it")
threading.Thread(target=work).start()
while locks.waiting(name) != 1: time.sleep(0.001)
threading.Timer(0.3, lease.release).start()
"""
    assert run(url, name, code) == "got it\n"


FORKED = """
locks, loops = polylock.connect(url), polylock.asyncio.connect(url)
lease = locks.acquire(name, ttl=1)
loops.waiting(name)  # used
lease.on_lost(lambda reason: print("lost", reason, flush=True))
child = os.fork()
if child == 0:
    def forked(use, *arguments):
        try: use(*arguments)
        except polylock.Forked: return
        raise SystemExit(f"{use} works")
    assert not lease.is_held and not lease.lost and lease.remaining == 0
    forked(lease.release), forked(lease.extend)
    forked(locks.acquire, name), forked(locks.try_acquire, name), forked(locks.waiting, name)
    with lease: pass  # leaving it is no error, and no release
    locks.close()
    async def old(): await loops.acquire(name)
    forked(asyncio.run, old())
    # What the child makes itself works, and does not get what the parent holds.
    with polylock.connect(url) as own, own.lock(name + ":child", ttl=5) as mine:
        if own.capabilities.across_processes: assert own.try_acquire(name) is None
        told = threading.Event()
        short = own.acquire(name + ":short", ttl=0.2, auto_extend=False)
        short.on_lost(lambda reason: told.set())
        assert told.wait(20)
    async def new():
        async with polylock.asyncio.connect(url) as own, own.lock(name + ":child", ttl=5): pass
    asyncio.run(new())
    del lease, locks, loops, short
    {ending}
pid, status = os.waitpid(child, 0)
assert status == 0, status
time.sleep(3)
assert lease.is_held
print(lease.release().value)
"""


@pytest.mark.parametrize("ending", ["os._exit(0)", "sys.exit(0)"])
def test_a_child_disowns_what_its_parent_holds(url: str, name: str, ending: str) -> None:
    assert run(url, name, FORKED.replace("{ending}", ending)) == "released\n"


def test_what_the_parent_has_not_used_is_the_childs_own(url: str, name: str) -> None:
    """As where a server imports the program before it forks its workers."""
    code = """
locks, loops = polylock.connect(url), polylock.asyncio.connect(url)
lock = locks.lock(name, ttl=5, wait=30)
@locks.locked(name + ":{number}")
def work(number): pass
async def works():
    async with loops.lock(name, ttl=5, wait=30): pass
def worker():
    with lock as lease:
        assert lease.is_held
    work(1), asyncio.run(works())
for generation in range(2):
    children = []
    for _ in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            if generation == 1: os.waitpid(os.fork() or os._exit(worker() or 0), 0)
            worker(), sys.exit(0)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
worker()
child = os.fork()
if child == 0:
    for use in (lambda: lock.acquire(), lambda: work(1), lambda: asyncio.run(works())):
        try: use()
        except polylock.Forked: pass
        else: os._exit(1)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    assert run(url, name, code) == "0\n"


def test_a_child_draws_other_owner_tokens_than_its_parent(url: str, name: str) -> None:
    code = """
locks = polylock.connect(url)
locks.acquire(name).release()
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    with polylock.connect(url) as own:
        for n in range(5):
            with own.lock(name + f":child{n}") as lease: os.write(writing, lease.owner_token.encode())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
theirs = os.read(reading, 200).decode()
ours = ""
for n in range(5):
    with locks.lock(name + f":parent{n}") as lease: ours += lease.owner_token
tokens = [text[at:at + 40] for text in (ours, theirs) for at in range(0, 200, 40)]
os.write(1, f"{len(set(tokens))}\\n".encode())
"""
    assert run(url, name, code) == "10\n"


def test_a_fork_while_threads_wait(url: str, name: str) -> None:
    code = """
locks = polylock.connect(url)
lease = locks.acquire(name, ttl=60)
def wait():
    try: locks.acquire(name)
    except polylock.Closed: os.write(1, b"closed\\n")
threads = [threading.Thread(target=wait) for _ in range(6)]
for thread in threads: thread.start()
while locks.waiting(name) != 6: time.sleep(0.001)
for _ in range(10):
    child = os.fork()
    if child == 0:
        with polylock.connect(url) as own, own.lock(name + ":child", wait=20): pass
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
assert lease.is_held
locks.close()
for thread in threads: thread.join()
"""
    assert run(url, name, code) == "closed\n" * 6


MULTIPROCESSING = """
import multiprocessing, pathlib, tempfile

def work(url, name, file):
    locks = polylock.connect(url)
    for _ in range(10):
        with locks.lock(name, ttl=10, wait=60):
            number = int(file.read_text())
            file.write_text(str(number + 1))
    global left
    left = locks.acquire(name + f":{os.getpid()}", ttl=60)
    file.with_name(str(os.getpid())).touch()

if __name__ == "__main__":
    polylock.connect(url).acquire(name + ":parent").release()
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory, "counter")
        file.write_text("0")
        context = multiprocessing.get_context(METHOD)
        workers = [context.Process(target=work, args=(url, name, file)) for _ in range(3)]
        for worker in workers: worker.start()
        for worker in workers: worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        print(file.read_text())
        # What the workers still held when they ended was released.
        locks = polylock.connect(url)
        print(sum(locks.try_acquire(name + f":{worker.pid}").release() == "released" for worker in workers))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(url: str, name: str, method: str, tmp_path: object) -> None:
    if not polylock.connect(url).capabilities.across_processes:
        pytest.skip("excludes nobody else")
    # spawn imports the main module, so it must be a file.
    file = f"{tmp_path}/main.py"
    head = "import os, sys, polylock\nurl, name = sys.argv[1:]\n"
    with open(file, "w") as main:
        main.write(head + MULTIPROCESSING.replace("METHOD", repr(method)))
    command = [sys.executable, "-W", "error", file, url, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.stdout, done.stderr) == ("30\n3\n", "")


SESSIONS = [f"{url}&connections=dedicated" for url in URLS if "mode=session" in url]


@pytest.mark.parametrize("place", ["file", *SESSIONS, *(url.partition("&")[0] for url in SESSIONS)])
def test_a_child_does_not_keep_the_lock_of_a_killed_parent(place: str, name: str, tmp_path: Path) -> None:
    code = """
import os, signal, sys, time
import polylock

lease = polylock.connect(sys.argv[1]).acquire(sys.argv[2], ttl=60)
child = os.fork()
if child:
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""
    url = f"file://{tmp_path}/locks" if place == "file" else place
    command = [sys.executable, "-c", code, url, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert parent.wait(60) == -signal.SIGKILL
        with polylock.connect(url).acquire(name, wait=30):
            os.kill(child, 0)  # it lives, and waits for the end of its input
