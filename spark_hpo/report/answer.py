"""The answer of a study: its best trial, and what it gains over what there was before."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spark_hpo.errors import SpaceError
from spark_hpo.objective import Mode
from spark_hpo.ranking import pareto_front
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A trial to compare the best one with."""

    trial: Trial
    value: float | None  # of the metric, when it was last measured; None: it has failed, or still runs
    best: float  # that of the best trial after as much training; where that is not known, at its end
    is_fair: bool  # whether it is after as much training
    gain: float | None  # of the best trial over it, positive where the best is better


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found."""

    best: Trial | None  # as it was reported; None: no trial has succeeded yet
    value: float | None  # its metric on the validation split
    test: dict[str, float] | None  # all its metrics on the test split; None: not tested
    first: Baseline | None  # the first trial; None: there is none, or the default is the first
    default: Baseline | None  # search.first[0], what is run today; None: the study has none, or not run
    has_default: bool  # whether search.first names one
    front: tuple[Trial, ...]  # with several objectives


def answer_of(record: StudyRecord) -> Answer:
    """The answer so far: of a running study too."""
    metric = record.objective.metric
    best = next(iter(record.ranking), None)
    tested = None if best is None else record.tests.get(best.trial_id)
    if best is not None and tested is not None and tested.resource != best.resource:
        tested = None
    first = min(record.trials.values(), key=lambda trial: trial.trial_id, default=None)
    default = _default(record)
    return Answer(
        best=best,
        value=None if best is None else best.metrics[metric],
        test=None if tested is None else dict(tested.metrics),
        first=None if first is default else _baseline(record, first, best),
        default=_baseline(record, default, best),
        has_default=bool(record.search.first),
        front=tuple(pareto_front(record.trials.values(), record.objective)),
    )


def _default(record: StudyRecord) -> Trial | None:
    """The trial of the first configuration of `search.first`."""
    if not record.search.first:
        return None
    try:
        params = record.space.validate(record.search.first[0])
    except SpaceError:
        return None
    trials = sorted(record.trials.values(), key=lambda trial: trial.trial_id)
    return next((trial for trial in trials if trial.params == params), None)


def _baseline(record: StudyRecord, trial: Trial | None, best: Trial | None) -> Baseline | None:
    if trial is None or best is None:
        return None
    metric = record.objective.metric
    value = trial.metrics.get(metric) if math.isfinite(trial.loss) else None
    # A trial that was stopped early is compared with the best one as it was then.
    then = {m.resource: m.metrics[metric] for m in record.trials[best.trial_id].curve if metric in m.metrics}
    then[best.resource] = best.metrics[metric]
    its_best = then.get(trial.resource, best.metrics[metric])
    sign = 1 if record.objective.mode is Mode.MAX else -1
    return Baseline(
        trial=trial,
        value=value,
        best=its_best,
        is_fair=trial.resource in then,
        gain=None if value is None else sign * (its_best - value),
    )
