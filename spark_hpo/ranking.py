"""Rankings of trials: the best ones, and the Pareto front of several objectives."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Generic, TypeVar

from spark_hpo.objective import BestRule, Choice, Objective, Score
from spark_hpo.search import pareto
from spark_hpo.trial import Report, Trial, TrialState

T = TypeVar("T")

Key = tuple[int, Score, int, int]
"""Sort key of a result, see `by_score`. The last part is the number of the trial."""

_Place = tuple[int, Key]  # 0: trained to the end, 1: not; the result by which the trial is compared


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


class Contest(Generic[T]):
    """Finds the best trial of a study, and the ones after it, as results come in.

    A result of a trial that was trained to the end counts more than any other one: the value of a short
    training says less about a model, and the best of many such values is partly luck. Trained trials are
    compared at their ends, and each takes part with its best checkpoint (`BestRule`). As long as no trial is
    trained, and with the rule `any`, every trial takes part with its best result.

    A trace, rule trained: report(trial 3, 0.2 after 3 epochs) -> best: trial 3 after 3;
        report(trial 5, 0.3 after 81); complete(5) -> best: trial 5 after 81;
        report(trial 3, 0.25 after 81); complete(3) -> best: trial 3 after 3, the best of its checkpoints
    """

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._at_best: dict[int, tuple[Key, T]] = {}  # by trial
        self._latest: dict[int, tuple[Key, T]] = {}  # by trial; those that have failed since have none
        self._places: dict[int, _Place] = {}  # by trial
        self._ranking: list[_Place] = []  # ascending

    def report(self, trial_id: int, key: Key, result: T, *, from_scratch: bool = False) -> None:
        """Take a result that has a value.

        Args:
            trial_id: the trial.
            key: its sort key, see `by_score`.
            result: what to return for the trial where this result is its best.
            from_scratch: the trial began again, because its checkpoints were deleted.
        """
        choice, known = self._choice, self._at_best.get(trial_id)
        self._latest[trial_id] = key, result
        is_gone = from_scratch and choice.rule is not BestRule.ANY
        if known is None or key < known[0] or is_gone:
            self._at_best[trial_id] = key, result
        best, score = self._at_best[trial_id][0], key[1]
        is_reached = choice.target is not None and not score.violation and score.loss <= choice.target
        has_end = trial_id in self._places and not self._places[trial_id][0]
        is_trained = choice.rule is BestRule.ANY or is_reached or has_end
        self._put(trial_id, (0 if is_trained else 1, best))

    def complete(self, trial_id: int) -> None:
        """Take the latest result of a trial for that at the end of its training."""
        if self._choice.rule is BestRule.ANY or trial_id not in self._latest:
            return
        if self._choice.rule is BestRule.FINAL:
            self._at_best[trial_id] = self._latest[trial_id]
        self._put(trial_id, (0, self._latest[trial_id][0]))

    def lose(self, trial_id: int) -> None:
        """Take a report without a value. Earlier results of the trial still count, but see `contenders`."""
        self._latest.pop(trial_id, None)

    @property
    def best(self) -> T | None:
        return self._at_best[self._ranking[0][1][-1]][1] if self._ranking else None

    def at_best(self, trial_id: int) -> T | None:
        """Return the best result of a trial; None: it has none."""
        found = self._at_best.get(trial_id)
        return None if found is None else found[1]

    def by_value(self) -> list[T]:
        """Return the best result of each trial, the best value first, however long the training was."""
        return [result for _, result in sorted(self._at_best.values(), key=lambda found: found[0])]

    def contenders(self, count: int) -> list[T]:
        """Return the results of the best trials that have not failed, the best first."""
        alive = (key[-1] for _, key in self._ranking if key[-1] in self._latest)
        return [self._at_best[trial_id][1] for trial_id in islice(alive, count)]

    def _put(self, trial_id: int, place: _Place) -> None:
        if (before := self._places.get(trial_id)) is not None:
            del self._ranking[bisect_left(self._ranking, before)]
        self._places[trial_id] = place
        insort(self._ranking, place)


def _is_offer(trial: Trial, objective: Objective) -> bool:
    is_known = all(map(math.isfinite, (trial.loss, *objective.extra_losses(trial.metrics))))
    return trial.state is TrialState.COMPLETED and is_known and objective.is_feasible(trial.metrics)


def by_score(trial: Trial) -> Key:
    """Sort key of trials, the best first; of equals the one that was trained longer.

    Means over different folds do not compare, because some folds are easier than others: a trial with more
    folds is better than any trial with fewer, unless it has no value.
    """
    folds = trial.resource if trial.has_folds and trial.score.is_finite else 0
    return -folds, trial.score, -trial.resource, trial.trial_id
