"""`spark-hpo import`."""

from __future__ import annotations

from pathlib import Path

import click

from spark_hpo.cli.command import Command, json_option
from spark_hpo.cli.console import say, say_json, write_file
from spark_hpo.errors import ConfigError
from spark_hpo.porting.import_file import import_file


@click.command(
    "import",
    cls=Command,
    examples=[
        "spark-hpo import sweep.yaml",
        "spark-hpo import experiment.yaml --output conf/my.yaml --overwrite",
    ],
)
@click.argument("file", metavar="FILE")
@click.option(
    "--output", default="my_study.yaml", show_default=True, metavar="FILE", help="The study file to write."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing study file.")
@json_option
def command(file: str, output: str, overwrite: bool, as_json: bool) -> None:
    """Make a study file of a W&B sweep or a Determined experiment.

    FILE is the sweep file or the experiment file, in YAML or JSON. Settings that have no counterpart, or
    another meaning in a study, are printed, and listed at the beginning of the study file.
    """
    imported = import_file(file)
    if Path(output).exists() and not overwrite:
        raise ConfigError(f"--output {output} exists. Choose another file, or add --overwrite")
    place = write_file(output, imported.to_yaml(Path(file).name).encode())
    if as_json:
        notes = [{"key": note.key, "text": note.text} for note in imported.notes]
        say_json({"study_file": place, "source": imported.source, "notes": notes})
        return
    say(f"{place}: a study for this {imported.source}")
    for note in imported.notes:
        say(f"- {note}")
