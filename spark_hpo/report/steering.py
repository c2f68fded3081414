"""Requests to the driver of a study. Without a driver, the directory says what the next one would refuse."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spark_hpo.config.limits import BudgetConfig
from spark_hpo.errors import ConfigError
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.search.samplers.steered import complete
from spark_hpo.search.space.ranges import with_ranges
from spark_hpo.study_dir import requests
from spark_hpo.study_dir.driver_settings import Settings
from spark_hpo.study_dir.lease import is_held
from spark_hpo.study_dir.requests import Answer, Reply, Verb
from spark_hpo.study_dir.steered import check_room, completed, raised
from spark_hpo.study_dir.storage import Storage


def ask(
    directory: Storage | str | Path,
    verb: Verb,
    arguments: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = requests.TIMEOUT_S,
) -> Answer:
    """Send a request as `requests.request` does; without a driver, refuse at once what makes no sense.

    Raises:
        ConfigError: there is no study, or the request makes no sense whatever the state of the study.
        StorageError: the directory cannot be read or written.
    """
    storage = directory if isinstance(directory, Storage) else Storage(directory)
    found = requests.checked(verb, arguments or {})
    if verb in (Verb.ADD, Verb.DROP, Verb.EXTEND, Verb.NARROW) and not is_held(storage):
        try:
            _check(storage, verb, found)
        except ConfigError as exc:
            return Answer(verb=verb, reply=Reply.REFUSED, message=str(exc))
    return requests.request(storage, verb, found, timeout_s=timeout_s)


def _check(storage: Storage, verb: Verb, arguments: Mapping[str, Any]) -> None:
    """Check what the directory tells about a request.

    The next driver may have other limits than the last one, and a sampler may refuse more.

    Raises:
        ConfigError: no driver would do this.
    """
    record = StudyRecord.read(storage, is_running=False)
    settings = Settings.load(storage)
    steered = record.steered
    space = record.first_space
    match verb:
        case Verb.DROP:
            steered.check_drop(arguments["trial"], record.trials)
        case Verb.EXTEND if settings is not None:
            budget = BudgetConfig.model_validate(settings.config.get("budget", {}))
            for key, amount in arguments["budget"].items():
                raised(key, steered.limit(key, getattr(budget, key)), amount)
        case Verb.NARROW if space.dimensions():
            changed = with_ranges(space, {**steered.ranges, **arguments["space"]})
            changed.sample(np.random.default_rng(0))  # raises if the constraints allow none
        case Verb.ADD if space.dimensions():
            best = record.trials.get(record.best_id) if record.best_id is not None else None
            made = partial(complete, with_ranges(space, steered.ranges))
            completed(made, arguments["params"], arguments["like"], record.trials, best)
            if settings is not None and not storage.names(requests.REQUESTS):
                budget = BudgetConfig.model_validate(settings.config.get("budget", {}))
                check_room(steered.limit("trials", budget.trials), len(record.trials))
