"""All stages by their names."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
from collections.abc import Callable

from postgres_stages import PostgresStage, StandbyStage
from proxy import Network
from redis_stages import RedisStage, SentinelStage
from stage import Stage
from zookeeper_stage import ZookeeperStage


class FileStage(Stage):
    """Files of this host. Nothing is between a worker and its locks."""

    name = "file"
    keeps = True
    shares = False

    def __init__(self, workers: list[str], network: Network) -> None:
        super().__init__(workers, network)
        self._directory = tempfile.mkdtemp(prefix="polylock-faults-")
        self._stack.callback(shutil.rmtree, self._directory)

    def url(self, worker: str) -> str:
        return f"file://{self._directory}"

    def left_over(self) -> list[str]:
        """Files whose lock somebody has: the system knows."""
        inodes = {str(file.stat().st_ino) for file in pathlib.Path(self._directory).rglob("*") if file.is_file()}
        locked = {line.split()[5].split(":")[-1] for line in pathlib.Path("/proc/locks").read_text().splitlines()}
        return sorted(inodes & locked)


STAGES: dict[str, Callable[[list[str], Network], Stage]] = {
    "file": FileStage,
    "redis": lambda workers, network: RedisStage(workers, network, 1),
    "redlock": lambda workers, network: RedisStage(workers, network, 5),
    "sentinel": lambda workers, network: SentinelStage(workers, network, replicas=1),
    "postgres": lambda workers, network: PostgresStage(workers, network, "lease"),
    "postgres-session": lambda workers, network: PostgresStage(workers, network, "session"),
    "standby": lambda workers, network: StandbyStage(workers, network, "lease"),
    "zookeeper": ZookeeperStage,
    # In these two may hold at one time.
    "sentinel-asynchronous": lambda workers, network: SentinelStage(workers, network, replicas=0),
    "standby-session": lambda workers, network: StandbyStage(workers, network, "session"),
    "standby-asynchronous": lambda workers, network: StandbyStage(workers, network, "lease", synchronous=False),
}
# What `make test` runs.
SHORT = list(STAGES)[:8]
