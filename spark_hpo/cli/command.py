"""A command whose help ends with examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


class Command(click.Command):
    """A click command, with `examples`: lines to be copied."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Examples as they are: a line that were wrapped could not be copied."""
    if examples:
        formatter.write_paragraph()
        formatter.write("Examples:\n")
        for example in examples:
            formatter.write(f"  {example}\n")
