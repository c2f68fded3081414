"""`spark-hpo resume`."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import click

from spark_hpo.cli.command import Command
from spark_hpo.cli.driver import drive, set_up_driver_logging, write_missing
from spark_hpo.cli.options import json_option, log_option, overrides_argument, sync_option
from spark_hpo.config import StudyConfig, load_config
from spark_hpo.definition import Definition
from spark_hpo.errors import ConfigError
from spark_hpo.search.space import Space
from spark_hpo.settings import Settings
from spark_hpo.storage import Storage

logger = logging.getLogger("spark_hpo.cli")


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
@log_option
def command(study: str, overrides: tuple[str, ...], sync: bool, as_json: bool, log_file: str | None) -> int:
    """Go on with a study that was interrupted, or has died.

    DIR is the study directory: it knows its settings, but for credentials, and the folder that relative paths
    begin in. CONF, the study file, does as well. KEY=VALUE replaces a setting; those that decisions depend on
    cannot change.
    """
    set_up_driver_logging(log_file)
    if Path(study).is_file():
        config, place, space = load_config(study, overrides), study, None
    else:
        config, place, space = _known_to(study, overrides)
    if sync:
        return write_missing(config, place=place, space=space, as_json=as_json)
    return drive(config, place=place, space=space, resume="must", as_json=as_json)


def _known_to(study: str, overrides: tuple[str, ...]) -> tuple[StudyConfig, str, Space | None]:
    """The configuration of the study in a directory, its place, and its space where that is not in it.

    The working directory becomes the one that the study was started in.
    """
    storage = Storage(study)
    definition = Definition.load(storage)
    if definition is None:
        raise ConfigError(f"{storage.url}: there is no study here (no study.json); is it the study_dir?")
    settings = Settings.load(storage)
    if settings is None:
        raise ConfigError(
            f"{storage.url}: its settings were not kept (no settings.json), because an older spark_hpo has "
            "started it; go on with the study file: spark-hpo resume CONF"
        )
    if "task" in settings.objects:
        raise ConfigError(
            f"{storage.url}: its task was given as an object by a program or a notebook; the same call there "
            "goes on with it"
        )
    config = settings.config_with(overrides, study_dir=storage.url)
    if settings.folder != os.getcwd():
        try:
            os.chdir(settings.folder)
        except OSError:
            logger.warning(
                "the study was started in %s, which is not here; relative paths begin in %s",
                *(settings.folder, os.getcwd()),
            )
    # The configuration adds its own constraints.
    known = replace(Space.from_json(definition.config["space"]), constraints=())
    return config, settings.place, known if "space" in settings.objects else None
