"""The command line, installed as ``polylock``; also ``python -m polylock``."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from . import _native


def main() -> NoReturn:
    """Does what the arguments of the process say, and exits."""
    # What Python makes of Ctrl-C would be seen by nobody. Where it is ignored it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_native.command_line(["polylock", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
