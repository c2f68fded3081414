"""What a study has found so far: its best trial and, with several objectives, its Pareto front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from spark_hpo.retention import Retention
from spark_hpo.search import pareto
from spark_hpo.trial import Objective, Report, Trial, TrialState


def pareto_front(trials: Iterable[Trial], objective: Objective) -> list[Trial]:
    """The trials that no other one beats in all objectives, in the order of their ids.

    Of those that were trained to the end and keep every limit: what a shorter training shows is no offer,
    a low latency least of all. Trials with equal metrics are on the front together. Empty with one
    objective, which has a best trial instead.
    """
    if not objective.also:
        return []
    offers = sorted(
        (trial for trial in trials if _is_offer(trial, objective)), key=lambda trial: trial.trial_id
    )
    losses = [(trial.loss, *objective.others(trial.metrics)) for trial in offers]
    return [offers[i] for i in pareto.pareto_front(losses)]


def as_reported(trial: Trial, report: Report, loss: float) -> Trial:
    """A trial as it was when this report of it came. Later ones may have changed it."""
    return replace(
        trial,
        rung=report.rung,
        resource=report.resource,
        metrics=report.metrics,
        loss=loss,
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
        if report.failure is not None or not math.isfinite(loss := objective.loss(report.metrics)):
            continue
        trial = as_reported(trials[report.trial_id], report, loss)
        best[trial.trial_id] = min(best.get(trial.trial_id, trial), trial, key=_by_loss)
    return sorted(best.values(), key=_by_loss)


class Incumbents:
    """The best trial and the Pareto front as reports come in. Their checkpoints are kept.

    A trace, of trials trained to the end: note(0) -> its checkpoint is kept; note(1, worse in all) ->
    nothing; note(2, better than 0 in one of two) -> those of 0 and 2; note(3, beats 0) -> those of 2 and 3
    """

    def __init__(self, objective: Objective, retention: Retention) -> None:
        self._objective = objective
        self._retention = retention
        self._best: Trial | None = None
        self._front: list[Trial] = []

    @property
    def best(self) -> Trial | None:
        """The trial with the lowest loss that was ever reported, as it was then."""
        return self._best

    def note(self, trial: Trial, *, is_complete: bool) -> None:
        """Take a trial as it has just been reported.

        A promotion may make it worse, and then the trial as it is now was the best. On the front, only what
        is trained to the end (`is_complete`) counts.
        """
        if math.isfinite(trial.loss) and (self._best is None or _by_loss(trial) < _by_loss(self._best)):
            self._best = trial
            self._retention.keep("best", trial.checkpoint)
        if not is_complete:
            return
        # Dominance is transitive: who has fallen off the front need not be asked again.
        before, self._front = self._front, pareto_front([*self._front, trial], self._objective)
        for member in self._front:
            self._retention.keep(("front", member.trial_id), member.checkpoint)
        for trial_id in {t.trial_id for t in before} - {t.trial_id for t in self._front}:
            self._retention.release(("front", trial_id))


def _is_offer(trial: Trial, objective: Objective) -> bool:
    is_known = all(map(math.isfinite, (trial.loss, *objective.others(trial.metrics))))
    return trial.state is TrialState.COMPLETED and is_known and objective.keeps_limits(trial.metrics)


def _by_loss(trial: Trial) -> tuple[float, int, int]:
    return trial.loss, -trial.resource, trial.trial_id
