"""A page of docs/benchmarks: what is printed while a benchmark runs is what the page shows."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


class Page:
    """Lines, printed as they come."""

    def __init__(self, introduction: str) -> None:
        self._introduction = introduction
        self._lines: list[str] = []

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self._lines.append(line)

    def row(self, *cells: object) -> None:
        """One row of a table."""
        self.say("| " + " | ".join(map(str, cells)) + " |")

    def heading(self, *cells: str) -> None:
        """The first row of a table."""
        self.row(*cells)
        self.say("|---" * len(cells) + "|")

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._introduction + "\n".join(self._lines) + "\n")


def machine(packages: Sequence[str]) -> str:
    """Where it was measured: cores, how busy they were before, versions."""
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, "
        f"Python {platform.python_version()}, {versions}"
    )
