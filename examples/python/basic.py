"""Runs a job under a lock: the first example of the README."""

import sys

import polylock

locks = polylock.connect(sys.argv[1] if len(sys.argv) > 1 else "memory:")
with locks.lock("invoice:42", ttl=10, wait=5) as lease:
    print(f"charging under fencing token {lease.fencing_token}")
    if locks.try_acquire("invoice:42") is None:
        print("nobody else can")
