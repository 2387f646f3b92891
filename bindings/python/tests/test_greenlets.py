"""Under gevent, where one thread that waits in the engine would stop everybody. Each case is a process of its own."""

from __future__ import annotations

import subprocess
import sys


def run(url: str, name: str, code: str) -> None:
    head = "from gevent import monkey; monkey.patch_all()\n"
    head += "import sys, time, gevent, polylock\nurl, name = sys.argv[1:]\nlocks = polylock.connect(url)\n"
    command = [sys.executable, "-c", head + code, url, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_who_waits_lets_the_holder_go_on(url: str, name: str) -> None:
    run(
        url,
        name,
        """
inside = 0
def work(lock):
    global inside
    for _ in range(3):
        with lock:
            inside += 1
            assert inside == 1
            time.sleep(0.01)
            inside -= 1

locks_of = [lambda: locks.lock(name, ttl=30), lambda: locks.lock(name, ttl=30, wait=60)]
gevent.joinall([gevent.spawn(work, lock()) for lock in locks_of * 2], raise_error=True)
""",
    )


def test_what_it_cannot_do_is_refused(memory: str) -> None:
    run(
        memory,
        "r",
        """
def refused(error, call, *arguments, **options):
    try: call(*arguments, **options)
    except error: return
    raise SystemExit(f"{call} works")

lease = locks.acquire(name)
refused(polylock.Unsupported, lease.on_lost, print)
refused(polylock.Unsupported, locks.log)
refused(polylock.Unsupported, locks.acquire, name, fair=True)
refused(polylock.AcquireTimeout, locks.acquire, name, wait=0)
refused(polylock.AcquireTimeout, locks.acquire, name, wait=0.1)
refused(polylock.InvalidArgument, locks.acquire, name, wait=-1)
refused(polylock.InvalidArgument, locks.acquire, name, wait=float("nan"))
refused(TypeError, locks.acquire, name, wait="soon")
refused(polylock.Unavailable, polylock.connect("redis://127.0.0.1:1").acquire, name, wait=0.1)
lease.release()
""",
    )
