"""Loads the configuration of a study from its directory, where its last driver kept it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from spark_hpo.config import StudyConfig
from spark_hpo.errors import ConfigError
from spark_hpo.search.space import Space
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.driver_settings import Settings, check_owner
from spark_hpo.study_dir.storage import Storage

logger = logging.getLogger("spark_hpo.cli")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStudy:
    """A study as its directory describes it."""

    config: StudyConfig
    space: Space | None  # None: it is in the configuration
    folder: str  # in which the study was started: relative paths begin there

    def change_to_folder(self) -> None:
        """Make the study's folder the working directory; where it does not exist, log a warning."""
        if self.folder == os.getcwd():
            return
        try:
            os.chdir(self.folder)
        except OSError:
            logger.warning(
                "the study was started in %s, which does not exist here; relative paths begin in %s",
                *(self.folder, os.getcwd()),
            )


def load_study(
    storage: Storage, overrides: Sequence[str] = (), *, needs_credentials: bool = True
) -> StoredStudy:
    """Load a study by its directory.

    Args:
        needs_credentials: whether credentials, which are not stored, must be given as overrides.

    Raises:
        ConfigError: there is no study, or its directory does not suffice to run it.
    """
    definition = Definition.require(storage)
    settings = Settings.load(storage)
    if settings is None:
        raise ConfigError(
            f"{storage.url} has no settings.json, because an older spark_hpo started the study",
            cure="Resume with the study file: spark-hpo resume CONF",
        )
    if "task" in settings.objects:
        raise ConfigError(
            f"the task of {storage.url} was passed as an object by a program or a notebook",
            cure="Call that program again",
        )
    check_owner(storage)
    config = settings.config_with(overrides, study_dir=storage.url, needs_credentials=needs_credentials)
    # The configuration adds its own constraints.
    space = replace(Space.from_json(definition.config["space"]), constraints=())
    own_space = space if "space" in settings.objects else None
    return StoredStudy(config=config, space=own_space, folder=settings.folder)
