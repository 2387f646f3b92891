"""A Celery task that runs once for each day, however often it is sent: `celery -A celery_once worker`."""

import functools
import os
import pathlib

import celery
import polylock

app = celery.Celery("reports", broker=os.environ.get("BROKER", "redis://localhost:6379/1"))
done = pathlib.Path(os.environ.get("REPORTS", "reports"))


@functools.cache
def locks() -> polylock.LockManager:
    """The manager of this worker: made after the fork that made the worker."""
    return polylock.connect(os.environ.get("LOCKS", "redis://localhost:6379/0"))


@app.task
def report(day: str) -> None:
    """Writes the report of `day`, unless it is there or another worker is writing it."""
    lease = locks().try_acquire(f"report:{day}", ttl=30, max_hold=3600)
    if lease is None:
        return
    with lease:
        file = done / day
        if not file.exists():
            file.write_text(f"written under {lease.fencing_token} by process {os.getpid()}\n")
