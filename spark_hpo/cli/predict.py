"""`spark-hpo predict`."""

from __future__ import annotations

import os

import click

from spark_hpo.backend.spark.session import start_session
from spark_hpo.cli.command import Command, json_option, verbose_option
from spark_hpo.cli.console import say, say_json
from spark_hpo.cli.export import export_best
from spark_hpo.config.databricks import default_tracking_uri
from spark_hpo.driver.predict import fetched, predict_table

SETTINGS = {
    "spark.log.level": "ERROR",
    # Unlike a rank, a task leaves nothing behind, so the next one finds the model loaded.
    "spark.python.worker.reuse": "true",
    "spark.task.maxFailures": "4",
}


@click.command(
    "predict",
    cls=Command,
    examples=[
        "spark-hpo predict models:/prices@champion --input new.csv --output predicted",
        "spark-hpo predict studies/prices --input s3a://lake/new.parquet --output s3a://lake/predicted",
    ],
)
@click.argument("model")
@click.option(
    "--input", metavar="TABLE", help="A CSV, Parquet, Delta or Iceberg table: a file, folder or URL."
)
@click.option("--table", metavar="NAME", help="A table in Spark's catalog, such as main.sales.orders.")
@click.option("--output", required=True, metavar="PATH", help="The Parquet folder to write.")
@click.option(
    "--columns", metavar="A,B", help="The columns to copy from the input to the output.  [default: all]"
)
@click.option(
    "--format", type=click.Choice(["csv", "parquet"]), help="Format of the input.  [default: by its ending]"
)
@click.option(
    "--version",
    metavar="V",
    help="Version of a Delta or Iceberg table: a number or a time.  [default: the newest]",
)
@click.option("--no-header", is_flag=True, help="The CSV has no header: columns are column1, column2, ...")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option(
    "--tracking-uri",
    metavar="URI",
    help="Where a registered model is looked up.  [default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db]",
)
@json_option
@verbose_option
def command(
    model: str,
    input: str | None,
    table: str | None,
    output: str,
    columns: str | None,
    format: str | None,
    version: str | None,
    no_header: bool,
    overwrite: bool,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Predict for each row of a table on Spark.

    MODEL is models:/NAME/VERSION or models:/NAME@ALIAS of the MLflow registry, a study directory (its best
    model), or a folder of `spark-hpo export`. The output has the columns of the input and the predictions.
    """
    if tracking_uri is None and "MLFLOW_TRACKING_URI" not in os.environ:
        tracking_uri = default_tracking_uri()
    with fetched(model, tracking_uri=tracking_uri, export_best=export_best) as folder:
        spark = start_session("spark_hpo predict", SETTINGS)
        rows, answers = predict_table(
            spark,
            folder,
            input=input,
            table=table,
            output=output,
            columns=None if columns is None else [name for name in columns.split(",") if name],
            format=format,
            version=version,
            header=not no_header,
            overwrite=overwrite,
        )
    if as_json:
        say_json({"output": output, "rows": rows, "columns": list(answers)})
        return
    say(f"{output}: {rows:,} rows with {', '.join(answers)}")
