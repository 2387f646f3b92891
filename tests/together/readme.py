#!/usr/bin/env python3
"""Checks that the README's examples are those that the tests run, and that its links lead somewhere.

A block of the README that names its language must stand in examples/LANGUAGE/basic.* line by line.
"""

from __future__ import annotations

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = {
    "python": "examples/python/basic.py",
    "js": "examples/node/basic.mjs",
    "c": "examples/c/basic.c",
    "rust": "examples/rust/src/bin/basic.rs",
}


def problems() -> list[str]:
    text = (ROOT / "README.md").read_text()
    blocks: dict[str, str] = dict(re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    found = [f"the README has no block of {language}" for language in EXAMPLES.keys() - blocks.keys()]
    for language, block in blocks.items():
        example = ROOT / EXAMPLES[language]
        if not example.exists() or block not in example.read_text():
            found.append(f"the README's block of {language} is not in {EXAMPLES[language]}")
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            if not (page.parent / link).exists():
                found.append(f"{page.name} links to {link}, which is not there")
    return found


if __name__ == "__main__":
    for problem in problems():
        print(problem, file=sys.stderr)
    sys.exit(1 if problems() else 0)
