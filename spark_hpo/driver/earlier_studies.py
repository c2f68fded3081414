"""Reads the trials of the studies in `search.transfer`, and keeps them in the study directory.

A study that resumes must know what it knew when it began, even if the earlier studies have changed since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from spark_hpo.config import ObjectiveConfig, StudyConfig
from spark_hpo.errors import ConfigError, JournalError, StorageError
from spark_hpo.search.samplers.transfer import EarlierTrial
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage

_FILE = "transfer.json"
_KEY = "search.transfer.studies"


def read_earlier_trials(config: StudyConfig, storage: Storage) -> list[list[EarlierTrial]]:
    """Return the trials of each earlier study: those that were kept, or what the studies have now.

    Args:
        config: of the new study.
        storage: of the new study's directory.

    Raises:
        ConfigError: an earlier study is missing, damaged, or has another metric or mode.
        JournalError: the trials that were kept are damaged.
    """
    studies = config.search.transfer.studies
    if not studies:
        return []
    kept = _kept(storage, studies)
    return [_trials_of(folder, config.objective) for folder in studies] if kept is None else kept


def keep_earlier_trials(
    config: StudyConfig, storage: Storage, trials: Sequence[Sequence[EarlierTrial]]
) -> None:
    """Write the trials into the study directory, for the drivers that resume it."""
    if not config.search.transfer.studies:
        return
    records = [
        [
            {
                "params": dict(trial.params),
                "resource": trial.resource,
                "loss": repr(trial.loss),  # text, because it may be infinite
                "violation": repr(trial.violation),
            }
            for trial in study
        ]
        for study in trials
    ]
    record = {"studies": list(config.search.transfer.studies), "trials": records}
    storage.write(_FILE, json.dumps(record).encode())


def _trials_of(folder: str, objective: ObjectiveConfig) -> list[EarlierTrial]:
    """Read an earlier study with its own objective."""
    storage = Storage(folder)
    try:
        definition = Definition.load(storage)
        if definition is None:
            raise ConfigError("has no study in it", key=_KEY, value=folder, cure="Correct or remove it")
        theirs = ObjectiveConfig.model_validate(definition.config["objective"])
        if (theirs.metric, theirs.mode) != (objective.metric, objective.mode):
            raise ConfigError(
                f"has the objective {theirs.metric}, {theirs.mode}, but this study has {objective.metric}, "
                f"{objective.mode}: their losses cannot be compared",
                key=_KEY,
                value=folder,
                cure="Remove it",
            )
        trials = Journal(storage, theirs.build()).trials.values()
    except (StorageError, ValueError, KeyError) as exc:  # pydantic's errors are ValueErrors
        raise ConfigError(
            f"cannot be read: {exc}", key=_KEY, value=folder, cure="Restore the study, or remove it"
        ) from exc
    return [
        EarlierTrial(params=t.params, resource=t.resource, loss=t.loss, violation=t.violation) for t in trials
    ]


def _kept(storage: Storage, studies: Sequence[str]) -> list[list[EarlierTrial]] | None:
    """Return the trials that were kept; None if there are none of these studies."""
    data = storage.read(_FILE)
    if data is None:
        return None
    try:
        record = json.loads(data)
        if isinstance(record, list):  # earlier versions wrote the trials only
            definition = Definition.load(storage)
            transfer = definition.config["search"].get("transfer", {}) if definition else {}
            record = {"studies": transfer.get("studies", list(studies)), "trials": record}
        if record["studies"] != list(studies):
            return None
        return [
            [
                EarlierTrial(
                    params=trial["params"],
                    resource=trial["resource"],
                    loss=float(trial["loss"]),
                    violation=float(trial.get("violation", 0.0)),
                )
                for trial in study
            ]
            for study in record["trials"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise JournalError(
            f"{storage.url}/{_FILE} is damaged ({exc!r}). It holds what this study has learned from earlier "
            "studies: restore it, or start a new study in another study_dir"
        ) from exc
