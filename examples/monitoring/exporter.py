"""Locks that come and go, and their metrics for Prometheus: `python exporter.py [URL [PORT]]`.

Needs the packages polylock and prometheus-client.
"""

from __future__ import annotations

import random
import sys
import threading
import time

import polylock
import polylock.prometheus
from prometheus_client import CollectorRegistry, start_http_server


def work(locks: polylock.LockManager) -> None:
    """Takes one of a few locks, holds it for a while; now and then for longer than its ttl, and loses it."""
    while True:
        name = f"invoice:{random.randrange(3)}"
        try:
            lease = locks.acquire(name, ttl=1, wait=0.5, auto_extend=random.random() > 0.05)
        except polylock.AcquireTimeout:
            continue
        time.sleep(random.expovariate(5))
        lease.release()


def main() -> None:
    """Serves until it is interrupted."""
    url, port = (sys.argv[1:] + ["memory:", "9464"][len(sys.argv) - 1 :])[:2]
    locks = polylock.connect(url)
    registry = CollectorRegistry()
    registry.register(polylock.prometheus.Collector(locks))
    server, _ = start_http_server(int(port), addr="127.0.0.1", registry=registry)
    for _ in range(4):
        threading.Thread(target=work, args=(locks,), daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}/metrics", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
