#!/usr/bin/env python3
"""Draws the dashboard by its own queries: `picture.py FILE.svg`. Needs matplotlib, and the package polylock.

A real Prometheus scrapes the exporter of examples/monitoring, whose locks are on a Redlock of three servers, of which
one stands still for a while. What is drawn is what that Prometheus answers.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
import tempfile
import time
import urllib.parse
from typing import Any

import matplotlib as mpl  # type: ignore[import-not-found, unused-ignore]
from matplotlib import pyplot as plt  # type: ignore[import-not-found, unused-ignore]
from monitoring import EXAMPLES, ask, filled_in, get, scraped

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "servers"))
from redis_server import RedisServer

# In seconds: how long all is well, how long a server stands still, and how long all is well again.
WELL, STILL = 60, 20
UNITS = {"s": "s", "ops": "a second", "short": ""}


def series(prometheus: str, query: str, begin: float, end: float) -> list[Any]:
    parameters = {"query": filled_in(query), "start": begin, "end": end, "step": 1}
    answer = json.loads(get(f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"))
    assert answer["status"] == "success", answer
    result: list[Any] = answer["data"]["result"]
    return result


def legend(text: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), text)


def draw(prometheus: str, begin: float, end: float, file: str) -> None:
    panels = json.loads((EXAMPLES / "dashboard.json").read_text())["panels"]
    lines = [panel for panel in panels if panel["type"] == "timeseries"]
    figure, places = plt.subplots((len(lines) + 1) // 2, 2, figsize=(14, 2.4 * ((len(lines) + 1) // 2) + 1))
    for panel, place in zip(lines, places.flat, strict=False):
        place.set_title(panel["title"], fontsize=10, loc="left")
        for target in panel["targets"]:
            for found in series(prometheus, target["expr"], begin, end):
                times, values = zip(*((at - begin, float(value)) for at, value in found["values"]), strict=True)
                place.plot(times, values, linewidth=1, label=legend(target["legendFormat"], found["metric"]))
        place.set_ylabel(UNITS[panel["fieldConfig"]["defaults"]["unit"]], fontsize=8)
        place.set_ylim(bottom=0)
        place.tick_params(labelsize=8)
        place.grid(alpha=0.3)
        if place.lines:
            place.legend(fontsize=7, ncols=2, loc="upper left")
    for place in list(places.flat)[len(lines) :]:
        place.set_axis_off()
    numbers = []
    for panel in panels:
        if panel["type"] == "stat":
            found = ask(prometheus, filled_in(panel["targets"][0]["expr"]))
            numbers.append(f"{panel['title']}: {float(found[0]['value'][1]):.0f}" if found else panel["title"])
    figure.suptitle("  |  ".join(numbers), fontsize=12, y=0.995)
    figure.tight_layout()
    figure.savefig(file)


def main(file: str) -> None:
    mpl.use("svg")
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "polylock"
    with tempfile.TemporaryDirectory() as directory, RedisServer() as one, RedisServer() as two, RedisServer() as three:
        urls = ",".join(server.url for server in (one, two, three))
        with scraped(urls, pathlib.Path(directory)) as prometheus:
            begin = time.time()
            time.sleep(WELL)
            two.pause()
            time.sleep(STILL)
            two.resume()
            time.sleep(WELL)
            draw(prometheus, begin, time.time(), file)


if __name__ == "__main__":
    main(*sys.argv[1:])
