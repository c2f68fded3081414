"""The answer of a study: its best trial, how it compares with baselines, and what to be careful about."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from spark_hpo.errors import SpaceError, count
from spark_hpo.objective import Mode, Objective
from spark_hpo.ranking import pareto_front
from spark_hpo.report.advice import narrow_ranges, outlook
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.constant_answer import ConstantAnswer
from spark_hpo.trial import HalvedBatches, Trial, TrialState

_RESUMABLE = ("trials", "resource", "seconds")  # endings after which a larger budget continues the study


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A trial that the best one is compared with."""

    trial: Trial
    value: float | None  # of the metric, as last measured; None: the trial failed, or has no value yet
    best: float  # of the best trial after as much training, or at its end if that was not measured
    is_fair: bool  # True: both values are after as much training
    gain: float | None  # of the best trial over this one; positive: the best trial is better


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """A better measurement of the best trial than that of its checkpoint."""

    resource: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The findings of a study."""

    best: Trial | None  # as it was reported; None: no trial has succeeded yet
    value: float | None  # its metric on the validation split, or the mean over its folds
    spread: float | None  # standard deviation of that metric over the folds; None: there is one fold or none
    peak: Peak | None  # None: no other epoch of the best trial was better
    test: dict[str, float] | None  # all its metrics on the test split; None: not tested
    first: Baseline | None  # the first trial; None: there is none, or it is the default
    default: (
        Baseline | None
    )  # search.enqueue[0], with which the search began; None: there is none, or it has not run
    has_default: bool  # True: search.enqueue is set
    constant: ConstantAnswer | None  # None: not known
    front: tuple[Trial, ...]  # with several objectives
    warnings: tuple[str, ...]  # what to know before using the best trial, one sentence or two each
    outlook: str | None  # whether more trials would help; None: not known, or no budget ended the search


def answer_of(record: StudyRecord) -> Answer:
    """Return the answer so far. The study may still be running."""
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
        spread=None if best is None else best.spread.get(metric),
        peak=None if best is None else _peak(record, best),
        test=None if tested is None else dict(tested.metrics),
        first=None if first is default else _baseline(record, first, best),
        default=_baseline(record, default, best),
        has_default=bool(record.search.enqueue),
        constant=record.constant,
        front=tuple(pareto_front(record.trials.values(), record.objective)),
        warnings=() if best is None else (*_warnings(record, best), *narrow_ranges(record)),
        outlook=outlook(record),
    )


def _warnings(record: StudyRecord, best: Trial) -> Iterator[str]:
    objective = record.objective
    if best.violation:
        yield f"No trial keeps every limit. The best one has {_broken_limits(objective, best)}."
    constant, metric = record.constant, objective.metric
    if constant is not None and constant.metric == metric:
        value = best.metrics[metric]
        is_better = value > constant.value if objective.mode is Mode.MAX else value < constant.value
        if not is_better:
            yield (
                f"The model is no better than a constant answer: always predicting {constant.answer} gives "
                f"{metric} {constant.value:.4g} on validation."
            )
    yield from _earlier_values(record, best)
    halved = [found for t in record.trials.values() if (found := HalvedBatches.of(t.notes)) is not None]
    if halved:
        yield (
            f"Batches of {len(halved)} of {count(len(record.trials), 'trial')} did not fit the device and "
            f"were halved, to {min(found.rows for found in halved)} rows per rank at the least."
        )
    is_partial = best.state is not TrialState.COMPLETED and best.resource < record.search.max_resource
    if is_partial and not record.is_running and record.ending is not None:
        amount = f"{best.resource:,} of {record.amount(record.search.max_resource)}"
        if best.state is TrialState.STOPPED:
            yield f"Trial {best.trial_id} was trained for {amount} only: the scheduler stopped it there."
        else:
            yield f"Trial {best.trial_id} was trained for {amount} only: the search ended before more." + (
                " Raise the budget and run the same command to continue."
                if record.ending in _RESUMABLE
                else ""
            )


def _earlier_values(record: StudyRecord, best: Trial) -> Iterator[str]:
    """Say that the model is an earlier checkpoint, or that a shorter training had a better value."""
    metric, trials = record.objective.metric, record.trials
    whole = trials[best.trial_id]
    if whole.state is not TrialState.COMPLETED:
        return
    if best.resource < whole.resource and not best.has_folds:
        yield (
            f"The model is trial {best.trial_id} after {record.amount(best.resource)}, its best checkpoint; "
            f"after {record.amount(whole.resource)} its {metric} is {whole.metrics[metric]:.4g}."
        )
    better = record.contest.by_value()[0]
    if better.trial_id == best.trial_id or not better.score < best.score or record.has_confirmed:
        return
    end = trials[better.trial_id]
    fate = "was not trained to the end"
    if end.state is TrialState.COMPLETED:
        fate = f"has {end.metrics[metric]:.4g} after {record.amount(end.resource)}"
    elif end.state is TrialState.FAILED:
        fate = "failed before its end"
    yield (
        f"Trial {better.trial_id} had a better {metric}, {better.metrics[metric]:.4g}, after "
        f"{record.amount(better.resource)}, but it {fate}. With search.best: any its model would be the best."
    )


def _broken_limits(objective: Objective, trial: Trial) -> str:
    broken = []
    for limit in objective.limits:
        if limit.violation(trial.metrics):
            value = trial.metrics[limit.metric]
            bound = f"at most {limit.at_most:g}" if value > limit.at_most else f"at least {limit.at_least:g}"
            broken.append(f"{limit.metric} {value:.4g} (limit: {bound})")
    return " and ".join(broken)


def _peak(record: StudyRecord, best: Trial) -> Peak | None:
    objective, metric = record.objective, record.objective.metric
    if best.has_folds:  # means over fewer folds do not compare
        return None
    curve = [m for m in record.trials[best.trial_id].curve if metric in m.metrics]
    peak = min(curve, key=lambda measured: objective.score(measured.metrics), default=None)
    if peak is None or not objective.score(peak.metrics) < best.score:
        return None
    return Peak(resource=peak.resource, value=peak.metrics[metric])


def _default(record: StudyRecord) -> Trial | None:
    """Return the trial that ran the first configuration of `search.enqueue`."""
    if not record.search.enqueue:
        return None
    try:
        params = record.space.validate(record.search.enqueue[0])
    except SpaceError:
        return None
    trials = sorted(record.trials.values(), key=lambda trial: trial.trial_id)
    return next((trial for trial in trials if trial.params == params), None)


def _baseline(record: StudyRecord, trial: Trial | None, best: Trial | None) -> Baseline | None:
    if trial is None or best is None:
        return None
    metric = record.objective.metric
    value = trial.metrics.get(metric) if math.isfinite(trial.loss) else None
    # A trial that was stopped early is compared with the best one as it was after as much training.
    at = {m.resource: m.metrics[metric] for m in record.trials[best.trial_id].curve if metric in m.metrics}
    at[best.resource] = best.metrics[metric]
    compared = at.get(trial.resource, best.metrics[metric])
    sign = 1 if record.objective.mode is Mode.MAX else -1
    return Baseline(
        trial=trial,
        value=value,
        best=compared,
        is_fair=trial.resource in at,
        gain=None if value is None else sign * (compared - value),
    )
