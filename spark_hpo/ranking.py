"""Rankings of trials: the best one, and the Pareto front of several objectives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from spark_hpo.objective import Objective, Score
from spark_hpo.search import pareto
from spark_hpo.trial import Report, Trial, TrialState


def pareto_front(trials: Iterable[Trial], objective: Objective) -> list[Trial]:
    """Return the fully trained, feasible trials that no other one dominates, in the order of their ids.

    Trials with equal metrics are on the front together. With one objective the front is empty.
    """
    if not objective.extra_objectives:
        return []
    offers = sorted(
        (trial for trial in trials if _is_offer(trial, objective)), key=lambda trial: trial.trial_id
    )
    losses = [(trial.loss, *objective.extra_losses(trial.metrics)) for trial in offers]
    return [offers[i] for i in pareto.pareto_front(losses)]


def as_reported(trial: Trial, report: Report, score: Score) -> Trial:
    """Return a trial as it was after a report, whatever later reports have changed."""
    return replace(
        trial,
        rung=report.rung,
        resource=report.resource,
        metrics=report.metrics,
        spread=report.spread,
        loss=score.loss,
        violation=score.violation,
        checkpoint=report.checkpoint,
    )


def with_final(trial: Trial, finals: Mapping[int, Report]) -> Trial:
    """Return a trial with the checkpoint of its final model, if one was trained after its folds.

    Args:
        finals: the reports of final models, by trial.
    """
    final = finals.get(trial.trial_id)
    is_of_it = final is not None and final.resource == trial.resource
    return replace(trial, checkpoint=final.checkpoint) if final is not None and is_of_it else trial


def best_reported(
    trials: Mapping[int, Trial],
    reports: Iterable[Report],
    objective: Objective,
    *,
    winner: int | None = None,
) -> Trial | None:
    """Return the best trial after these reports, none of which is of a test.

    Args:
        winner: the trial that has won against the other finalists, which is the best then.
    """
    at_best = each_at_its_best(trials, reports, objective)
    return next((t for t in at_best if t.trial_id == winner), next(iter(at_best), None))


def each_at_its_best(
    trials: Mapping[int, Trial], reports: Iterable[Report], objective: Objective
) -> list[Trial]:
    """Return each trial that has a value as it was when it was best; the best trial first."""
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


def by_score(trial: Trial) -> tuple[int, Score, int, int]:
    """Sort key of trials, the best first; of equals the one that was trained longer.

    Means over different folds do not compare, because some folds are easier than others: a trial with more
    folds is better than any trial with fewer, unless it has no value.
    """
    folds = trial.resource if trial.has_folds and trial.score.is_finite else 0
    return -folds, trial.score, -trial.resource, trial.trial_id
