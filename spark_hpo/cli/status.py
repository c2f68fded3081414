"""`spark-hpo status`."""

from __future__ import annotations

import click

from spark_hpo.cli.command import Command, json_option, study_argument
from spark_hpo.cli.console import answers, say_json
from spark_hpo.report.board import board
from spark_hpo.report.status import StudyStatus
from spark_hpo.study_dir.storage import Storage


@click.command(
    "status",
    cls=Command,
    examples=[
        "spark-hpo status studies/quickstart",
        "spark-hpo status s3://bucket/studies/adult --json | jq .best.value",
    ],
)
@study_argument
@json_option
def command(study: str, as_json: bool) -> None:
    """Print the state of a study.

    DIR is the study directory, a path or URL. The study may be running. A driver that was killed is reported
    at once on its own machine, and on others when its lease of a minute has expired.
    """
    status = StudyStatus.read(Storage(study))
    if as_json:
        say_json(status.to_json())
    else:
        answers().print(board(status))
