"""`spark-hpo report`."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from spark_hpo.cli.command import Command, json_option, study_argument
from spark_hpo.cli.console import say, say_json, write_file
from spark_hpo.errors import ConfigError
from spark_hpo.report.page import FILE, html_of
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.storage import Storage


@click.command(
    "report",
    cls=Command,
    examples=[
        "spark-hpo report studies/quickstart --open",
        "spark-hpo report s3://bucket/studies/adult --output adult.html",
    ],
)
@study_argument
@click.option("--output", metavar="FILE", help=f"The file to write.  [default: {FILE} in DIR]")
@click.option("--open", "show", is_flag=True, help="Open it in a browser.")
@json_option
def command(study: str, output: str | None, show: bool, as_json: bool) -> None:
    """Write report.html, a page with the results and plots of a study.

    DIR is the study directory. The study may be running. The page is one file and needs no network.
    """
    storage = Storage(study)
    text = html_of(StudyRecord.read(storage))
    if output is None:
        storage.write(FILE, text.encode())
        place = f"{storage.url}/{FILE}"
    else:
        place = write_file(output, text.encode())
    if as_json:
        say_json({"report": place})
    else:
        say(place)
    if show:
        if "://" in place:
            raise ConfigError(f"a browser cannot open {place}. Write a local file with --output FILE")
        webbrowser.open(Path(place).as_uri())
