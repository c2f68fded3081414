"""`spark-hpo zoom`."""

from __future__ import annotations

from pathlib import Path

import click

from spark_hpo.cli.command import Command, json_option, study_argument
from spark_hpo.cli.console import say, say_json, write_file
from spark_hpo.config import load_config
from spark_hpo.driver.zoom import zoom
from spark_hpo.errors import ConfigError
from spark_hpo.study_dir.driver_settings import Settings
from spark_hpo.study_dir.storage import Storage


@click.command(
    "zoom",
    cls=Command,
    examples=[
        "spark-hpo zoom studies/quickstart",
        "spark-hpo zoom studies/quickstart --share 0.1 --output conf/quickstart-2.yaml",
    ],
)
@study_argument
@click.option("--output", metavar="FILE", help="The file to write.  [default: beside the study file]")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.2,
    show_default=True,
    help="The share of the best trials that the new ranges contain; at least five trials.",
)
@json_option
def command(study: str, output: str | None, share: float, as_json: bool) -> None:
    """Write the study file of a narrower search around the best trials of a study.

    DIR is the study directory. The new study has a name and a directory of its own, and learns from the
    trials of the old one (search.transfer). Check the file, then start it with spark-hpo run.
    """
    storage = Storage(study)
    text = zoom(storage, share=share)
    if output is None:
        settings = Settings.load(storage)
        place = Path(settings.place) if settings is not None else Path()
        folder = place.parent if place.is_file() else Path()
        output = str(folder / f"{(place.stem if place.is_file() else Path(study).name)}-zoom.yaml")
    if Path(output).exists():
        raise ConfigError(f"{output}: exists already", cure="Choose another file with --output")
    written = write_file(output, text.encode())
    config = load_config(written)  # also to check it
    if as_json:
        say_json({"study_file": written, "study_dir": config.study_dir, "name": config.name})
    else:
        say(f"{written}\nstart it with: spark-hpo run {output}")
