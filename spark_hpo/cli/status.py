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
    """Say where a study stands.

    DIR is its directory, a path or URL; nothing else is needed, and its driver is not disturbed. A driver
    that was killed is told from one that works: on its own machine at once, from others when its lease of a
    minute has run out.
    """
    status = StudyStatus.read(Storage(study))
    if as_json:
        say_json(status.to_json())
    else:
        answers().print(board(status))
