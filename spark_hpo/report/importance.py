"""The importance of parameters, from trials with equal training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from spark_hpo.errors import SpaceError
from spark_hpo.objective import Score
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.search.importance import MIN_RESULTS, importance

_SHARE = 0.4  # of the trials must have been measured at a resource: fewer are the survivors only
MOST = 3000  # trials that are compared
_ROUGH = 50  # results; with fewer it changes with each trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """The share of each parameter by its dotted name, the largest first."""

    shares: Mapping[str, float]
    resource: int = 0  # at which trials were compared
    trials: int = 0  # that were
    missing: str | None = None  # why there are no shares

    @property
    def is_rough(self) -> bool:
        return self.trials < _ROUGH


@lru_cache(maxsize=1)  # several pictures of one record ask for it
def importance_of(record: StudyRecord) -> Importance:
    """Losses are compared at one resource: the highest at which two fifths of the trials were measured."""
    levels: dict[int, dict[int, Score]] = {}  # by resource, then trial
    for trial in record.trials.values():
        at = {m.resource: m.metrics for m in trial.curve}
        if trial.metrics:
            at[trial.resource] = trial.metrics
        for resource, metrics in at.items():
            score = record.objective.score(metrics)
            if score.is_finite:
                levels.setdefault(resource, {})[trial.trial_id] = score
    measured = len({trial_id for scores in levels.values() for trial_id in scores})
    enough = max(MIN_RESULTS, math.ceil(_SHARE * measured))
    comparable = [resource for resource, scores in levels.items() if len(scores) >= enough]
    if not comparable:
        return Importance(shares={}, missing=f"at least {MIN_RESULTS} trials with equal training are needed")
    resource = max(comparable)
    every = sorted(levels[resource].items())
    step = -(-len(every) // MOST)
    scores = dict(every[::step])  # spread evenly, so that a large study does not take long
    try:
        shares = importance(record.space, [(record.trials[i].params, scores[i]) for i in scores])
    except SpaceError as exc:
        return Importance(shares={}, missing=f"a trial does not fit the space ({exc})")
    missing = None if shares else "the trials or their results do not differ"
    if not shares and any(record.trials[i].params for i in scores) and not record.space.dimensions():
        missing = "the training function defines the space, so the study does not know it"
    return Importance(shares=shares, resource=resource, trials=len(scores), missing=missing)
