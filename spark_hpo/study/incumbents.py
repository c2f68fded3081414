"""The best trial of a study so far and, with several objectives, its Pareto front."""

from __future__ import annotations

from dataclasses import dataclass

from spark_hpo.objective import Objective
from spark_hpo.ranking import by_score, pareto_front
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

    def __post_init__(self) -> None:
        self._best: Trial | None = None
        self._front: list[Trial] = []

    @property
    def best(self) -> Trial | None:
        """The trial with the lowest loss that was ever reported, as it was then."""
        return self._best

    def note(self, trial: Trial, *, is_complete: bool) -> None:
        """Compare a trial, as of its latest report, with the best one and the front.

        Promotion may make a trial worse; then its state at the lower rung stays the best. The front takes
        only trials that were trained to the end (`is_complete`).
        """
        if trial.score.is_finite and (self._best is None or by_score(trial) < by_score(self._best)):
            self._best = trial
            self.retention.keep(BEST, trial.checkpoint)
        if not is_complete:
            return
        # Dominance is transitive: trials that have left the front need not be compared again.
        before, self._front = self._front, pareto_front([*self._front, trial], self.objective)
        for member in self._front:
            self.retention.keep(Owner(Role.FRONT, member.trial_id), member.checkpoint)
        for trial_id in {t.trial_id for t in before} - {t.trial_id for t in self._front}:
            self.retention.keep(Owner(Role.FRONT, trial_id), None)
