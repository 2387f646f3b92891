#!/usr/bin/env python3
"""Checks that every crate we link may be used under a licence that deny.toml allows. Needs no network."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def is_allowed(expression: str, allowed: set[str]) -> bool:
    """Whether an SPDX expression can be met: by all parts of an AND, by any part of an OR."""
    # Older crates write MIT/Apache-2.0 for OR. AND binds closer than OR.
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def alternatives() -> bool:
        result = conjunction()
        while words and words[0] == "OR":
            words.pop(0)
            # Evaluated first: it has to be read even where the result is known.
            result = conjunction() or result
        return result

    def conjunction() -> bool:
        result = single()
        while words and words[0] == "AND":
            words.pop(0)
            result = single() and result
        return result

    def single() -> bool:
        word = words.pop(0)
        if word == "(":
            result = alternatives()
            words.pop(0)
            return result
        if words[:1] == ["WITH"]:
            words.pop(0)
            word = f"{word} WITH {words.pop(0)}"
        return word in allowed

    return alternatives()


def main() -> int:
    licenses = tomllib.loads((ROOT / "deny.toml").read_text())["licenses"]
    allowed = set(licenses["allow"])
    exceptions = {entry["crate"]: set(entry["allow"]) for entry in licenses.get("exceptions", [])}
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    refused = [
        f"{package['name']} {package['version']}: {package['license']}"
        for package in metadata["packages"]
        if not is_allowed(package["license"] or "none", allowed | exceptions.get(package["name"], set()))
    ]
    for line in refused:
        print(f"licence not allowed: {line}", file=sys.stderr)
    print(f"licences: {len(metadata['packages'])} crates, {len(refused)} refused")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
