"""Builds the package as a release does, and installs it in fresh environments: `wheel.py DIRECTORY PYTHON…`.

The wheel is made from the source distribution, so that is known to be whole. Every PYTHON gets the same wheel.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
LARGEST = 8 << 20  # bytes
SLOWEST = 30_000  # µs

SMOKE = """
import asyncio, os, threading
import polylock
assert len(os.listdir("/proc/self/task")) == 1, "importing starts threads"
lease = polylock.connect("memory:").acquire("r")
if os.fork() == 0:
    try: lease.release()
    except polylock.Forked: os._exit(0)
    os._exit(1)
assert os.wait()[1] == 0
print(lease.release().value)
async def main():
    async with polylock.asyncio.connect("memory:").lock("r") as lease: print(lease.fencing_token > 0)
asyncio.run(main())
"""


def run(*command: str | Path) -> str:
    """What it prints; on its failure that is shown."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def build(directory: Path) -> Path:
    """The source distribution, and from it the wheel."""
    maturin = Path(sys.executable).with_name("maturin")
    run(maturin, "sdist", "--manifest-path", PACKAGE / "Cargo.toml", "--out", directory)
    (source,) = directory.glob("*.tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", directory, source)
    (wheel,) = directory.glob("*.whl")
    size = wheel.stat().st_size
    print(f"{source.name} {source.stat().st_size / 1e6:.1f} MB, {wheel.name} {size / 1e6:.1f} MB")
    assert size < LARGEST, "the wheel is too large"
    assert "-abi3-" in wheel.name
    return wheel


def check(wheel: Path, python: str) -> None:
    """Installs it for one Python and uses it."""
    with tempfile.TemporaryDirectory() as directory:
        run(python, "-m", "venv", directory)
        own = Path(directory, "bin", "python")
        run(own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[redis]")
        assert run(own, "-W", "error", "-c", SMOKE).split() == ["released", "True"]
        assert run(own.with_name("polylock"), "--version").startswith("polylock ")
        readme = "\n".join(re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL))
        assert "charging under" in run(own, "-W", "error", "-c", readme)
        took = min(import_time(own) for _ in range(10))
        print(f"{run(own, '--version').strip()}: imported in {took / 1000:.1f} ms")
        assert took < SLOWEST, "importing is too slow"


def import_time(python: Path) -> int:
    """Microseconds, as -X importtime has them."""
    lines = run(python, "-X", "importtime", "-c", "import polylock").splitlines()
    return next(int(line.split("|")[1]) for line in lines if line.rstrip().endswith("| polylock"))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for old in [*target.glob("*.whl"), *target.glob("*.tar.gz")]:
        old.unlink()
    built = build(target)
    for interpreter in sys.argv[2:]:
        check(built, interpreter)
