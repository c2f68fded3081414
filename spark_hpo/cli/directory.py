"""A study that is named by its directory alone: its configuration, as its last driver has kept it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from spark_hpo.config import StudyConfig
from spark_hpo.errors import ConfigError
from spark_hpo.search.space import Space
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.driver_settings import Settings, check_owner
from spark_hpo.study_dir.storage import Storage

logger = logging.getLogger("spark_hpo.cli")


def configuration_of(
    storage: Storage, overrides: Sequence[str] = (), *, needs_credentials: bool = True
) -> tuple[StudyConfig, Space | None]:
    """The configuration, and the space where that is not in it.

    The working directory becomes the one that the study was started in: relative paths begin there.

    Args:
        needs_credentials: those that were not kept have to be given again, as overrides.

    Raises:
        ConfigError: there is no study, or it cannot be known from its directory; with the cure.
    """
    definition = Definition.require(storage)
    settings = Settings.load(storage)
    if settings is None:
        raise ConfigError(
            f"{storage.url}: its settings were not kept (no settings.json), because an older spark_hpo has "
            "started it; go on with the study file: spark-hpo resume CONF"
        )
    if "task" in settings.objects:
        raise ConfigError(
            f"{storage.url}: its task was given as an object by a program or a notebook, and only the same "
            "call there has it"
        )
    check_owner(storage)
    config = settings.config_with(overrides, study_dir=storage.url, needs_credentials=needs_credentials)
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
    return config, known if "space" in settings.objects else None
