"""Puts the help of all commands into docs/command-line.md: `python -m tests.support.command_line_page`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from spark_hpo.cli.program import COMMANDS, _commands

PAGE = Path(__file__).parents[2] / "docs/command-line.md"
_WIDTH = 100


def help_of(name: str) -> str:
    """What `spark-hpo NAME --help` prints on a terminal of 100 columns."""
    parent = click.Context(_commands, info_name="spark-hpo", terminal_width=_WIDTH)
    command = _commands.get_command(parent, name)
    assert command is not None, f"there is no command {name}"
    return command.get_help(click.Context(command, parent, info_name=name)).rstrip()


def with_help(page: str) -> str:
    """The page with the help of today in it."""

    def block(match: re.Match[str]) -> str:
        return f"{match['mark']}\n```text\n{help_of(match['name'])}\n```\n"

    pattern = r"(?P<mark><!-- help: (?P<name>\w+) -->)\n(```text\n.*?\n```\n)?"
    return re.sub(pattern, block, page, flags=re.DOTALL)


def commands_of(page: str) -> list[str]:
    """The commands whose help the page has, in its order."""
    return re.findall(r"<!-- help: (\w+) -->", page)


if __name__ == "__main__":
    text = with_help(PAGE.read_text())
    assert commands_of(text) == list(COMMANDS), "each command has its place on the page"
    PAGE.write_text(text)
