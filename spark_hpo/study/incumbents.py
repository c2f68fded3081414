"""The best trial of a study so far and, with several objectives, its Pareto front."""

from __future__ import annotations

from dataclasses import dataclass

from spark_hpo.objective import Choice, Objective
from spark_hpo.ranking import Contest, by_score, pareto_front
from spark_hpo.search.scheduler import Slot
from spark_hpo.study_dir.retention import BEST, Owner, Retention, Role
from spark_hpo.trial import Trial


@dataclass(eq=False)
class Incumbents:
    """Tracks the best trial and the Pareto front as reports come in, and keeps their checkpoints.

    A trace, of trials trained to the end: note(0) -> its checkpoint is kept; note(1, worse in all) ->
    nothing; note(2, better than 0 in one of two) -> those of 0 and 2; note(3, beats 0) -> those of 2 and 3
    """

    objective: Objective
    retention: Retention
    choice: Choice

    def __post_init__(self) -> None:
        self._contest: Contest[Trial] = Contest(self.choice)
        self._front: list[Trial] = []

    @property
    def best(self) -> Trial | None:
        """The best trial by the study's rule, as it was when it was best."""
        return self._contest.best

    def at_best(self, trial_id: int) -> Trial | None:
        """Return a trial as it was when it was best; None: it has no value."""
        return self._contest.at_best(trial_id)

    def finalists(self, count: int) -> list[Trial]:
        """Return the best trials, each as it was when it was best. Failed ones are not among them."""
        return self._contest.contenders(count)

    def note(self, trial: Trial, slot: Slot, *, is_complete: bool) -> None:
        """Compare a trial, as of its latest report, with the best one and the front.

        Promotion may make a trial worse; then its state at the lower rung stays its best one. The front takes
        only trials that were trained to the end.

        Args:
            trial: as of its latest report.
            slot: that the report ends.
            is_complete: the trial was trained to the end.
        """
        best = self.best
        if trial.score.is_finite:
            from_scratch = slot.resource_from == 0
            self._contest.report(trial.trial_id, by_score(trial), trial, from_scratch=from_scratch)
        else:
            self._contest.lose(trial.trial_id)
        if is_complete:
            self._contest.complete(trial.trial_id)
        if self.best is not None and self.best is not best:  # else BEST may be its final model, after folds
            self.retention.keep(BEST, self.best.checkpoint)
        if not is_complete:
            return
        # Dominance is transitive: trials that have left the front need not be compared again.
        before, self._front = self._front, pareto_front([*self._front, trial], self.objective)
        for member in self._front:
            self.retention.keep(Owner(Role.FRONT, member.trial_id), member.checkpoint)
        for trial_id in {t.trial_id for t in before} - {t.trial_id for t in self._front}:
            self.retention.keep(Owner(Role.FRONT, trial_id), None)
