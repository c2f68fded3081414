"""`spark-hpo prepare`."""

from __future__ import annotations

import click

from spark_hpo.cli.command import Command


@click.command(
    "prepare",
    cls=Command,
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
    examples=[
        "spark-hpo prepare csv --input adult.csv --label income --output data/adult",
        "spark-hpo prepare csv --input s3a://lake/sales --label returned --in-place --output data/sales",
    ],
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> int:
    """Make a table that studies can read, of CSV or Parquet."""
    from spark_hpo.prepare.cli import main

    return main(arguments, program="spark-hpo prepare")
