"""Puts the help of all commands into docs/command-line.md: `python -m tests.support.command_line_page`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import click

from spark_hpo.cli.program import COMMANDS, _commands, load_command

PAGE = Path(__file__).parents[2] / "docs/command-line.md"
_WIDTH = 100


def help_of(name: str) -> str:
    """Return the output of `spark-hpo NAME --help` in 100 columns; NAME may have a subcommand."""
    command: click.Command = _commands
    context = click.Context(command, info_name="spark-hpo", terminal_width=_WIDTH)
    for word in name.split():
        assert isinstance(command, click.Group)
        found = command.get_command(context, word)
        assert found is not None, f"there is no command {name}"
        command, context = found, click.Context(found, context, info_name=word)
    return command.get_help(context).rstrip()


def names() -> list[str]:
    """Return all commands, each before its subcommands."""
    found = []
    for name in COMMANDS:
        command = load_command(name)
        subcommands = command.commands if isinstance(command, click.Group) else ()
        found += [name, *(f"{name} {subcommand}" for subcommand in subcommands)]
    return found


def parse(command: click.Command, words: Sequence[str]) -> None:
    """Parse the arguments of a command without running it.

    Raises:
        click.UsageError: an argument is wrong.
    """
    context = command.make_context(command.name, list(words))
    if isinstance(command, click.Group):
        own = vars(context)
        first = own.get("_protected_args", own.get("protected_args", ()))  # the latter before click 8.2
        _, subcommand, rest = command.resolve_command(context, [*first, *context.args])
        assert subcommand is not None
        parse(subcommand, rest)


def with_help(page: str) -> str:
    """Return the page with the current help."""

    def block(match: re.Match[str]) -> str:
        return f"{match['mark']}\n```text\n{help_of(match['name'])}\n```\n"

    pattern = r"(?P<mark><!-- help: (?P<name>[\w ]+) -->)\n(```text\n.*?\n```\n)?"
    return re.sub(pattern, block, page, flags=re.DOTALL)


def commands_of(page: str) -> list[str]:
    """Return the commands whose help is on the page, in order."""
    return re.findall(r"<!-- help: ([\w ]+) -->", page)


if __name__ == "__main__":
    text = with_help(PAGE.read_text())
    assert commands_of(text) == names(), "each command has its place on the page"
    PAGE.write_text(text)
