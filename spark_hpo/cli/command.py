"""The parts of commands: a help that ends with examples, and the arguments that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from spark_hpo.backend.spark.quiet import quiet_jvm


class Command(click.Command):
    """A click command with `examples`: lines to copy, at the end of its help."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)


class CommandGroup(Command, click.Group):
    """A command with subcommands."""


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write examples without wrapping, so that each can be copied."""
    if examples:
        formatter.write_paragraph()
        formatter.write("Examples:\n")
        for example in examples:
            formatter.write(f"  {example}\n")


study_argument = click.argument("study", metavar="DIR")
"""A study directory: a local path or any fsspec URL."""

config_argument = click.argument("config", metavar="CONF")
"""A study file."""

overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
"""Settings that replace those of the file."""

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON, as the last line of standard output."
)

log_option = click.option("--log-file", metavar="FILE", help="Also log to this file, one line per event.")


def _quiet(context: click.Context, parameter: click.Parameter, is_verbose: bool) -> None:
    if not is_verbose:
        quiet_jvm()


verbose_option = click.option(
    "--verbose", is_flag=True, expose_value=False, callback=_quiet, help="Show the messages of Spark, too."
)

sync_option = click.option(
    "--sync",
    is_flag=True,
    help="Write what is missing in MLflow, including the registered model, and train nothing.",
)


def parsed_mapping(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
    """Parse a mapping in YAML, such as `{time: day, history: 28}`; the braces may be missing."""
    if text is None:
        return None
    import yaml

    try:
        found = yaml.safe_load(text if text.startswith("{") else f"{{{text}}}")
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{text!r} is not a mapping, such as 'time: day, history: 28, horizon: 7'")
    return found
