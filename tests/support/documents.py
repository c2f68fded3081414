"""Parses the pages of the documentation: links, inline code, and code blocks with their notes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(path.name for path in ROOT.glob("*.md")),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]
_NOTE = re.compile(r"<!-- (not run: .{10,}|run by (tests/\S+)) -->")
_PARSER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code."""

    page: str
    line: int
    language: str
    text: str
    note: str  # why it is not run, or which test runs it; "": nothing is said

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def run_by(self) -> str:
        """The test file that runs the block, according to the page."""
        found = _NOTE.fullmatch(self.note)
        return (found and found[2]) or ""

    @property
    def is_excused(self) -> bool:
        """True if the block has a valid note."""
        return _NOTE.fullmatch(self.note) is not None


def blocks(page: str, language: str = "") -> list[Block]:
    """Yield the blocks of a page in order."""
    tokens, found = _tokens(page), []
    for i, token in enumerate(tokens):
        if token.type == "fence" and language in ("", token.info.split(" ")[0]):
            before = tokens[i - 1].content.strip() if i and tokens[i - 1].type == "html_block" else ""
            assert token.map
            found.append(Block(page, token.map[0] + 1, token.info.split(" ")[0], token.content, before))
    return found


def targets(page: str) -> Iterator[tuple[int, str]]:
    """Yield the targets of the links and images of a page, with their lines."""
    for line, token in _inline(page):
        target = token.attrs.get({"link_open": "href", "image": "src"}.get(token.type, ""))
        if target is not None:
            yield line, str(target)


def code(page: str) -> Iterator[tuple[int, str]]:
    """Yield the inline code of a page."""
    for line, token in _inline(page):
        if token.type == "code_inline":
            yield line, token.content


def anchors(page: str) -> set[str]:
    """Return the anchors of a page: its headings as code hosts and the site name them."""
    tokens = _tokens(page)
    titles = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _tokens(page: str) -> list[Token]:
    return _PARSER.parse((ROOT / page).read_text())


def _inline(page: str) -> Iterator[tuple[int, Token]]:
    line = 0
    for token in _tokens(page):
        line = token.map[0] + 1 if token.map else line
        for child in token.children or ():
            yield line, child
