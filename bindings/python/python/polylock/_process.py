"""What happens at the end of a process and after a fork.

The engine itself notices a fork: managers and leases of the parent answer `Forked` in the child. Only the Python
thread that calls listeners has to be forgotten there.
"""

from __future__ import annotations

import atexit
import os
import sys

from . import _listeners, _native

EXIT_TIMEOUT = 2.0
"""Seconds that releasing what is still held may take at the end of a process."""

_enrolled_in: int | None = None


def _at_exit() -> None:
    _listeners.stop()
    _native.shutdown(EXIT_TIMEOUT)


def install() -> None:
    """Registers the hooks. Starts nothing."""
    atexit.register(_at_exit)
    os.register_at_fork(after_in_child=_listeners.after_fork_in_child)


def enroll_child() -> None:
    """Has a child of `multiprocessing` release its leases too: it ends without running the exit hooks."""
    global _enrolled_in  # noqa: PLW0603 - one per process
    process = sys.modules.get("multiprocessing.process")
    if process is None or _enrolled_in == os.getpid() or process.parent_process() is None:
        return
    from multiprocessing.util import Finalize  # noqa: PLC0415 - only where it has been imported already

    _enrolled_in = os.getpid()
    Finalize(None, _at_exit, exitpriority=0)
