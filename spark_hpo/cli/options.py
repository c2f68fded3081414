"""Arguments and options that several commands have."""

from __future__ import annotations

import click

study_argument = click.argument("study", metavar="DIR")
"""A study directory: a local path, or any fsspec URL."""

config_argument = click.argument("config", metavar="CONF")
"""A study file."""

overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
"""Settings that replace those of the file."""

json_option = click.option(
    "--json", "as_json", is_flag=True, help="The answer as JSON, in the last line of standard output."
)

log_option = click.option("--log-file", metavar="FILE", help="Write one line an event to this file, too.")

sync_option = click.option(
    "--sync",
    is_flag=True,
    help="Write what MLflow lacks of the study, the registered model too, and train nothing.",
)
