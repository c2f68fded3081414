"""Rankings of trials: the best one, and the Pareto front of several objectives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from spark_hpo.objective import Objective, Score
from spark_hpo.search import pareto
from spark_hpo.trial import Report, Trial, TrialState


def pareto_front(trials: Iterable[Trial], objective: Objective) -> list[Trial]:
    """The trials that no other one beats in all objectives, in the order of their ids.

    Of those that were trained to the end and keep every limit: what a shorter training shows is no offer,
    a low latency least of all. Trials with equal metrics are on the front together. Empty with one
    objective, which has a best trial instead.
    """
    if not objective.extra_objectives:
        return []
    offers = sorted(
        (trial for trial in trials if _is_offer(trial, objective)), key=lambda trial: trial.trial_id
    )
    losses = [(trial.loss, *objective.extra_losses(trial.metrics)) for trial in offers]
    return [offers[i] for i in pareto.pareto_front(losses)]


def as_reported(trial: Trial, report: Report, score: Score) -> Trial:
    """A trial as it was when this report of it came. Later ones may have changed it."""
    return replace(
        trial,
        rung=report.rung,
        resource=report.resource,
        metrics=report.metrics,
        loss=score.loss,
        violation=score.violation,
        checkpoint=report.checkpoint,
    )


def best_reported(
    trials: Mapping[int, Trial], reports: Iterable[Report], objective: Objective
) -> Trial | None:
    """What `Incumbents.best` is after all these reports, none of a test."""
    return next(iter(each_at_its_best(trials, reports, objective)), None)


def each_at_its_best(
    trials: Mapping[int, Trial], reports: Iterable[Report], objective: Objective
) -> list[Trial]:
    """Every trial that has a value, as it was reported when it was best; the best trial first."""
    best: dict[int, Trial] = {}
    for report in reports:
        if not (score := objective.score(report.scored_metrics)).is_finite:
            continue
        trial = as_reported(trials[report.trial_id], report, score)
        best[trial.trial_id] = min(best.get(trial.trial_id, trial), trial, key=by_score)
    return sorted(best.values(), key=by_score)


def _is_offer(trial: Trial, objective: Objective) -> bool:
    is_known = all(map(math.isfinite, (trial.loss, *objective.extra_losses(trial.metrics))))
    return trial.state is TrialState.COMPLETED and is_known and objective.is_feasible(trial.metrics)


def by_score(trial: Trial) -> tuple[Score, int, int]:
    """Sort key of trials, the best first; of equals the one that was trained longer."""
    return trial.score, -trial.resource, trial.trial_id
