#!/usr/bin/env python3
"""Monitoring with a real Prometheus: `monitoring.py [URL]`.

Rules and their tests by promtool; then Debian's Prometheus scrapes the exporter of examples/monitoring, and every
query of the dashboard and of the alerts is asked there.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "monitoring"
# Where tests/install.sh puts the programs if the machine has none.
os.environ["PATH"] += f"{os.pathsep}{ROOT / 'build' / 'prometheus' / 'usr' / 'bin'}"
PATIENCE = 60.0  # seconds; for a machine that is busy with other things
# What an example of a few seconds has no reason to show.
MAY_BE_EMPTY = re.compile(r"unanswered|== 0|polylock_lost_total|< 5|> 0|> 10|remaining|end=")


def promtool(*arguments: str, text: str | None = None) -> None:
    """Runs it on what is beside the examples; shows what it says if it does not like that."""
    done = subprocess.run(
        ["promtool", *arguments], cwd=EXAMPLES, input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        body: bytes = answer.read()
    return body.decode()


def ask(prometheus: str, query: str) -> list[Any]:
    """The series that a query gives; an error for one that is none."""
    answer = json.loads(get(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"))
    assert answer["status"] == "success", answer
    result: list[Any] = answer["data"]["result"]
    return result


def filled_in(query: str) -> str:
    """As Grafana would."""
    return query.replace("$__rate_interval", "10s").replace("$job", ".*").replace("$system", ".*")


def queries() -> Iterator[str]:
    """All of the dashboard's and the alerts'."""
    dashboard = json.loads((EXAMPLES / "dashboard.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    found += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    yield from map(filled_in, found)


@contextlib.contextmanager
def scraped(url: str, directory: pathlib.Path) -> Iterator[str]:
    """A Prometheus that scrapes the exporter, whose locks are at `url`, each second: where it answers."""
    with contextlib.ExitStack() as stack:

        def run(*command: str | pathlib.Path, **streams: Any) -> subprocess.Popen[str]:
            process = subprocess.Popen(command, text=True, **streams)
            stack.callback(process.wait, PATIENCE)
            stack.callback(process.terminate)
            return process

        exporter = run(sys.executable, EXAMPLES / "exporter.py", url, "0", stdout=subprocess.PIPE)
        assert exporter.stdout is not None
        target = urllib.parse.urlsplit(exporter.stdout.readline().strip())
        promtool("check", "metrics", text=get(target.geturl()))
        config = (EXAMPLES / "prometheus.yml").read_text().replace("127.0.0.1:9464", target.netloc)
        config = config.replace("5s", "1s").replace("[alerts.yml]", f"[{EXAMPLES / 'alerts.yml'}]")
        (directory / "prometheus.yml").write_text(config)
        log = stack.enter_context((directory / "log").open("w"))
        run(
            "prometheus",
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            "--web.listen-address=127.0.0.1:0",
            "--log.level=info",
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        where: str = until("it listens", lambda: listens(directory / "log"))
        until("it is ready", lambda: is_ready(where))
        # A rate needs two scrapes.
        until(
            "scraped",
            lambda: ask(where, 'sum(rate(polylock_acquire_duration_seconds_count{outcome="acquired"}[10s])) > 0'),
        )
        yield where


def scrapes(url: str, directory: pathlib.Path) -> None:
    with scraped(url, directory) as where:
        empty = [query for query in queries() if not ask(where, query) and not MAY_BE_EMPTY.search(query)]
        if url.startswith("memory:"):
            empty = [query for query in empty if "polylock_node" not in query]
        assert not empty, f"these show nothing: {empty}"
        rules = json.loads(get(f"{where}/api/v1/rules"))["data"]["groups"]
        broken = [rule for group in rules for rule in group["rules"] if rule["health"] == "err"]
        assert rules and not broken, broken


def listens(log: pathlib.Path) -> str | None:
    found = re.search(r"address=(127\.0\.0\.1:[1-9]\d*)|addr=(127\.0\.0\.1:[1-9]\d*)", log.read_text())
    return f"http://{found.group(1) or found.group(2)}" if found else None


def is_ready(prometheus: str) -> bool:
    """Not as soon as it listens: then it first reads what it has."""
    try:
        get(f"{prometheus}/-/ready")
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return False
    return True


def until(what: str, holds: Any) -> Any:
    limit = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < limit, f"never: {what}"
        time.sleep(0.1)
    return found


def main(url: str) -> int:
    with tempfile.TemporaryDirectory() as directory:
        checks: dict[str, Callable[[], None]] = {
            "the alerts are rules": lambda: promtool("check", "rules", "alerts.yml"),
            "the alerts fire when they should": lambda: promtool("test", "rules", "alerts.test.yml"),
            "a real Prometheus scrapes the exporter": lambda: scrapes(url, pathlib.Path(directory)),
        }
        failed = 0
        for name, check in checks.items():
            try:
                check()
                print(f"ok    {name}")
            except (AssertionError, OSError) as error:
                failed += 1
                print(f"FAIL  {name}: {error}")
    print(f"monitoring: {len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:] or ["memory:"]))
