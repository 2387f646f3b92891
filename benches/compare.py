#!/usr/bin/env python3
"""Runs the comparisons: `compare.py OUTPUT COMMAND…`. Prints a table and writes all rows to OUTPUT.

Each COMMAND compares polylock with others in one language, interleaved in one process, and prints a JSON object per
row.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import subprocess
import sys

COLUMNS = ["language", "what", "unit", "ours", "peer", "peer_name", "ratio"]


def rows_of(command: str) -> list[dict[str, str | float]]:
    output = subprocess.run(shlex.split(command), check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = []
    for line in output.splitlines():
        row = json.loads(line)
        area = "throughput" if row["unit"] == "pairs/s" else "uncontended"
        rows.append({"area": area, "backend": "redis", **row, "ratio": round(row["ours"] / row["peer"], 3)})
    return rows


def shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def main(output: str, commands: list[str]) -> int:
    rows = [row for command in commands for row in rows_of(command)]
    table = [COLUMNS, *([shown(row[column]) for column in COLUMNS] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(COLUMNS))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print("\nratio = ours / peer: below 1 is better for us, above 1 for pairs/s.")
    path = pathlib.Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
