"""`spark-hpo init`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from spark_hpo.cli.command import Command, json_option, parsed_mapping, verbose_option
from spark_hpo.cli.console import answers, diagnostics, say, say_json
from spark_hpo.errors import ConfigError
from spark_hpo.starter import start_study


@click.command(
    "init",
    cls=Command,
    examples=[
        "spark-hpo init main.sales.orders --label returned",
        "spark-hpo init data/my",
        "spark-hpo init /lake/sales.parquet --label returned --output sales.yaml",
        "spark-hpo init data/my --world-size 2 --name my-two --study-dir /mnt/shared/studies/my-two",
    ],
)
@click.argument("table", metavar="TABLE")
@click.option(
    "--label",
    multiple=True,
    metavar="COLUMN",
    help="The column to predict; repeat it for several. Not needed for a prepared table.",
)
@click.option(
    "--windows",
    callback=parsed_mapping,
    metavar="KEY: VALUE,..",
    help="Forecast the label from the steps of series: 'time: day, series: shop, history: 28, horizon: 7'.",
)
@click.option(
    "--output", default="my_study.yaml", show_default=True, metavar="FILE", help="The study file to write."
)
@click.option("--name", help="Name of the study.  [default: name of the table]")
@click.option("--study-dir", metavar="DIR", help="The study directory.  [default: studies/NAME]")
@click.option(
    "--tracking-uri",
    metavar="URI",
    help="Tracking server of MLflow.  [default: MLFLOW_TRACKING_URI, or studies/mlflow.db]",
)
@click.option(
    "--world-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Ranks that train one trial together.",
)
@click.option(
    "--trust-petastorm-metadata",
    is_flag=True,
    help="Unpickle what Petastorm wrote about the columns. Only for tables whose source you trust.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing study file.")
@json_option
@verbose_option
def command(
    table: str,
    label: tuple[str, ...],
    windows: dict[str, Any] | None,
    output: str,
    name: str | None,
    study_dir: str | None,
    tracking_uri: str | None,
    world_size: int,
    trust_petastorm_metadata: bool,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Write a study file for a table, with a search space that fits it.

    TABLE is a name in Spark's catalog (main.sales.orders), a query (SELECT ...), a table that `spark-hpo
    prepare` wrote, any Parquet (also Petastorm's), a Delta or Iceberg table, or a CSV with a header. The file
    explains each choice in comments, and `spark-hpo run` takes it as it is.
    """
    file = Path(output)
    if file.exists() and not overwrite:
        raise ConfigError(f"{output} exists already. Choose another --output, or add --overwrite")
    start = start_study(
        table,
        label=label,
        windows=windows,
        name=name,
        study_dir=study_dir,
        tracking_uri=tracking_uri,
        world_size=world_size,
        trust_petastorm_metadata=trust_petastorm_metadata,
        measure=True,
    )
    try:
        file.write_text(start.text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{output} cannot be written: {exc.strerror}. Choose another --output") from exc
    for remark in start.remarks:
        say(f"note: {remark}", diagnostics())
    config, budget = start.config, start.config.budget
    people = diagnostics() if as_json else answers()
    say(
        f"{output}: {config.task}, {config.objective.metric} {config.objective.mode}, {len(config.space)} "
        f"parameters, {budget.trials} trials or {budget.seconds:.0f} s\n"
        f"next: spark-hpo doctor {shlex.quote(output)}, then spark-hpo run {shlex.quote(output)}",
        people,
    )
    if as_json:
        record = {"task": config.task, "objective": config.objective.model_dump(mode="json")}
        say_json({"config": output, "study": config.name, **record, "remarks": list(start.remarks)})
    return 0
