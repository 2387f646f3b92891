"""What happens at the end of a process and after a fork.

The engine itself notices a fork: managers and leases of the parent answer `Forked` in the child. Only the Python
thread that calls listeners has to be forgotten there, and the parent's lock files closed: they stay locked for as
long as any process has them open.
"""

from __future__ import annotations

import atexit
import os
import sys
from threading import get_ident

from . import _listeners, _native

EXIT_TIMEOUT = 2.0
"""Seconds that releasing what is still held may take at the end of a process."""

LINGER = 5.0
"""Seconds for which a daemon thread that still waits at the end of the process is not told that it waits in vain."""

_enrolled_in: int | None = None
_ending_on: int | None = None


def is_ending_elsewhere() -> bool:
    """Whether the process ends, and this is a daemon thread that is about to be left behind.

    Such a thread should not print a traceback in the last milliseconds because the locks were closed.
    """
    return _ending_on is not None and _ending_on != get_ident()


def _at_exit() -> None:
    global _ending_on  # noqa: PLW0603 - one per process
    _ending_on = get_ident()
    _listeners.stop()
    _native.shutdown(EXIT_TIMEOUT)


def _after_fork_in_child() -> None:
    _listeners.after_fork_in_child()
    for descriptor in _native.inherited_fds():
        os.close(descriptor)


def install() -> None:
    """Registers the hooks. Starts nothing."""
    atexit.register(_at_exit)
    os.register_at_fork(after_in_child=_after_fork_in_child)


def enroll_child() -> None:
    """Has a child of `multiprocessing` release its leases too: it ends without running the exit hooks."""
    global _enrolled_in  # noqa: PLW0603 - one per process
    process = sys.modules.get("multiprocessing.process")
    if process is None or _enrolled_in == os.getpid() or process.parent_process() is None:
        return
    from multiprocessing.util import Finalize  # noqa: PLC0415 - only where it has been imported already

    _enrolled_in = os.getpid()
    Finalize(None, _at_exit, exitpriority=0)
