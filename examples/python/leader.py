"""One leader among all workers that run this: `leader.py URL NAME`. Ctrl-C or SIGTERM makes room for the next."""

import signal
import sys
import threading
from types import FrameType

import polylock


class Stop(Exception):
    """Somebody wants this worker to end."""


def lead(lease: polylock.Lease, name: str) -> None:
    """What the leader alone does, for as long as it is the leader."""
    over = threading.Event()
    lease.on_lost(lambda reason: over.set())
    print(f"{name} leads, term {lease.fencing_token}", flush=True)
    while not over.wait(0.5):
        pass  # a step of the leader's work; what it writes to should refuse a smaller term than it has seen


def main(url: str, name: str) -> None:
    """Follows until it leads, and follows again when it has lost the lead."""
    with polylock.connect(url) as locks:
        while True:
            try:
                with locks.lock("leader", ttl=5, label=name) as lease:
                    lead(lease, name)
            except polylock.LockLost as error:
                print(f"{name} follows: {error}", flush=True)
            except polylock.Unavailable as error:
                print(f"{name} sees no server: {error}", flush=True)


def stop(number: int, frame: FrameType | None) -> None:
    """Ends whatever the main thread does, also while it waits for the lead."""
    raise Stop


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        main(*sys.argv[1:])
    except Stop:
        print(f"{sys.argv[2]} ends", flush=True)
