"""`spark-hpo run`."""

from __future__ import annotations

import click

from spark_hpo.backend.collector import collector_off
from spark_hpo.backend.spark.session import start_jvm
from spark_hpo.cli.command import (
    Command,
    config_argument,
    json_option,
    log_option,
    overrides_argument,
    sync_option,
    verbose_option,
)
from spark_hpo.cli.logs import set_up_driver_logging
from spark_hpo.config import load_config
from spark_hpo.config.databricks import is_runtime
from spark_hpo.driver.backend_choice import with_backend
from spark_hpo.driver.precheck import check_study


@click.command(
    "run",
    cls=Command,
    examples=[
        "spark-hpo run conf/quickstart.yaml",
        "spark-hpo run conf/adult.yaml budget.trials=20 resources.world_size=1 study_dir=studies/adult-1",
        "spark-hpo run my_study.yaml --resume never --json | tail -n 1 | jq .best.params",
        "spark-submit --master yarn jobs/tune.py run my_study.yaml",
    ],
)
@config_argument
@overrides_argument
@click.option(
    "--resume",
    type=click.Choice(["auto", "must", "never"]),
    default="auto",
    show_default=True,
    help="auto: resume the study in study_dir if there is one; must: fail if there is none; never: fail if "
    "there is one.",
)
@sync_option
@json_option
@verbose_option
@log_option
def command(
    config: str, overrides: tuple[str, ...], resume: str, sync: bool, as_json: bool, log_file: str | None
) -> int:
    """Run a study file to the end of its budget.

    CONF is the study file, in YAML. KEY=VALUE replaces a setting; the value is YAML. After an interruption,
    the same command resumes the study.
    """
    set_up_driver_logging(log_file)
    study = with_backend(load_config(config, overrides))
    if not sync:
        check_study(study)
    if study.needs_spark and not sync:
        start_jvm(study.spark, is_databricks=is_runtime())
    with collector_off():  # importing these takes as long as starting a JVM
        from spark_hpo.cli.driver import drive, write_missing

    if sync:
        return write_missing(study, as_json=as_json)
    return drive(study, resume=resume, as_json=as_json)
