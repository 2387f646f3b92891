"""A wall clock that can be set, for programs that are started with it."""

from __future__ import annotations

import pathlib
import struct
import subprocess

SOURCE = pathlib.Path(__file__).parents[2] / "core/tests/faults/clock_shim.c"


class Clock:
    """Programs that have `environment` see it. A monotonic clock, as deadlines need it, is none of its business."""

    def __init__(self, directory: pathlib.Path, name: str = "clock") -> None:
        """Its offset is in a file of that name in `directory`, as a 64-bit number of milliseconds."""
        shim = directory / "clock_shim.so"
        if not shim.exists():
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, SOURCE], check=True)
        self._offset = directory / name
        self._offset.write_bytes(bytes(4096))
        self.environment = {"LD_PRELOAD": str(shim), "CLOCK_SHIM": str(self._offset)}

    def set(self, seconds: int) -> None:
        """From now on it is so far off."""
        # In place: it is mapped.
        with open(self._offset, "r+b") as offset:
            offset.write(struct.pack("=q", seconds * 1000))
