"""`spark-hpo resume`."""

from __future__ import annotations

from pathlib import Path

import click

from spark_hpo.backend.collector import collector_off
from spark_hpo.backend.spark.session import start_jvm
from spark_hpo.cli.command import (
    Command,
    json_option,
    log_option,
    overrides_argument,
    sync_option,
    verbose_option,
)
from spark_hpo.cli.directory import load_study
from spark_hpo.cli.logs import set_up_driver_logging
from spark_hpo.cli.steer import print_answer
from spark_hpo.config import load_config
from spark_hpo.config.databricks import is_runtime
from spark_hpo.driver.backend_choice import with_backend
from spark_hpo.driver.precheck import check_study
from spark_hpo.study_dir.lease import is_held
from spark_hpo.study_dir.requests import Verb, request
from spark_hpo.study_dir.storage import Storage


@click.command(
    "resume",
    cls=Command,
    examples=[
        "spark-hpo resume studies/quickstart",
        "spark-hpo resume s3://bucket/studies/adult resources.max_concurrent=8",
        "spark-hpo resume conf/adult.yaml --json",
    ],
)
@click.argument("study", metavar="DIR|CONF")
@overrides_argument
@sync_option
@json_option
@verbose_option
@log_option
def command(study: str, overrides: tuple[str, ...], sync: bool, as_json: bool, log_file: str | None) -> int:
    """Resume a study that was paused or interrupted, or whose driver died.

    If a driver works on the study, it gets the request to resume, and this command ends. Otherwise
    this command becomes the driver. Both undo `spark-hpo pause` and `spark-hpo stop`.

    DIR is the study directory, which holds the settings (without credentials) and the folder where relative
    paths begin. CONF is the study file. KEY=VALUE replaces a setting, unless decisions depend on it.
    """
    set_up_driver_logging(log_file)
    config = load_config(study, overrides) if Path(study).is_file() else None
    storage = Storage(study if config is None else config.study_dir)
    if not sync and not overrides and is_held(storage):
        print_answer(request(storage, Verb.RESUME), as_json=as_json)
        return 0
    space = None
    if config is None:
        stored = load_study(storage, overrides)
        stored.change_to_folder()
        config, space = stored.config, stored.space
    if not sync:
        check_study(config, space=space)
    config = with_backend(config)
    if config.needs_spark and not sync:
        start_jvm(config.spark, is_databricks=is_runtime())
    with collector_off():  # importing these takes as long as starting a JVM
        from spark_hpo.cli.driver import drive, write_missing

    if sync:
        return write_missing(config, space=space, as_json=as_json)
    return drive(config, space=space, resume="must", as_json=as_json)
