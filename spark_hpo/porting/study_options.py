"""The study's configuration and the limit on its trials, for `fmin` and `optimize`."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark_hpo.config import StudyConfig, build_config
from spark_hpo.errors import ConfigError
from spark_hpo.study import RunningStudy
from spark_hpo.study.callback import Callback
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.connection import usual_uri
from spark_hpo.trial import Trial

MANY = 2**63 - 1  # trials: no limit


def study_config(
    place: str,
    function: Any,
    *,
    name: str | None,
    storage: str | os.PathLike[str] | None,
    seed: int | None,
    parallelism: int | None,
    timeout: float | None,
    objective: Mapping[str, Any],
    space: Mapping[str, Any],
    sections: Mapping[str, Any],
) -> StudyConfig:
    """Return the configuration of a study each of whose trials is one call of a function.

    Args:
        place: the name of the caller, for messages.
        storage: the study directory; None: a new one in `studies/`.
        seed: None: a random one. A study that exists keeps its seed.
        timeout: seconds after which no new trial starts.
        objective: the section of a study file.
        space: a description of it; a study is not resumed with another one.
        sections: of a study file, which override the others.

    Raises:
        ConfigError: with one line per mistake.
    """
    name = name or _name_of(function)
    if storage is None:
        storage = Path("studies") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    study_dir = os.fspath(storage)
    known = Definition.load(Storage(study_dir))
    if known is not None:
        seed = int(known.config["seed"])
    if parallelism is not None and (isinstance(parallelism, bool) or not isinstance(parallelism, int)):
        raise ConfigError("must be an integer", key="parallelism", value=parallelism)
    record: dict[str, Any] = {
        "name": name,
        "study_dir": study_dir,
        "seed": int.from_bytes(os.urandom(4)) if seed is None else seed,
        "backend": "auto",
        "task": name,
        "objective": objective,
        "space": space,
        "search": {"sampler": "random", "scheduler": "full", "max_resource": 1},
        "budget": {"resource": MANY, "seconds": timeout},
        # hyperopt and Optuna continue however many objectives fail.
        "stopping": {"max_failed_share": None},
        "resources": {"max_concurrent": parallelism if parallelism and parallelism > 0 else None},
        "mlflow": {"tracking_uri": usual_uri(study_dir)},
    }
    return build_config(_merged(record, sections), place=place)


def _name_of(function: Any) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return re.sub(r"[^A-Za-z0-9_.-]", "", name).lstrip("_.-")[:60] or "objective"


def _merged(record: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(record)
    for key, value in over.items():
        before = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(before, Mapping)
        merged[key] = _merged(before or {}, value) if both else value
    return merged


@dataclass(eq=False)
class TrialLimit(Callback):
    """Stops a study once it has this many trials, in whatever state, as `max_evals` and `n_trials` do."""

    limit: int

    def on_study_start(self, study: RunningStudy) -> None:
        self._count(study)

    def on_trial_start(self, study: RunningStudy, trial: Trial) -> None:
        self._count(study)

    def _count(self, study: RunningStudy) -> None:
        if len(study.trials) >= self.limit:
            study.stop("trials")
