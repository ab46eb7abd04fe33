"""The pages of the README and the docs, and their fenced blocks, for the tests of both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))}
# Pages whose blocks have a test of their own, which starts Ray.
TESTED_ELSEWHERE = {"own-tuner.md": "tests/sweep/test_own_tuner.py"}
RUN_MARKER = "run"  # of the block that tests/commands/test_api.py runs, because it starts Ray


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the comment line before it."""

    page: str
    line: int
    language: str
    text: str
    marker: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> Iterator[Block]:
    text = PAGES[page]
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        before = text[: found.start()]
        marker = re.search(r"<!-- ([\w ]+) -->\n$", before)
        yield Block(page, before.count("\n") + 1, found[1], found[2], marker[1] if marker else "")


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def blocks(language: str) -> list[Block]:
    here = [block for block in BLOCKS if block.page not in TESTED_ELSEWHERE and block.marker != RUN_MARKER]
    return [block for block in here if block.language == language]
