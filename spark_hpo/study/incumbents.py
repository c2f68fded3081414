"""What a study has found so far: its best trial and, with several objectives, its Pareto front."""

from __future__ import annotations

from spark_hpo.objective import Objective
from spark_hpo.ranking import by_score, pareto_front
from spark_hpo.study_dir.retention import Retention
from spark_hpo.trial import Trial


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
        """The trial with the best score that was ever reported, as it was then."""
        return self._best

    def note(self, trial: Trial, *, is_complete: bool) -> None:
        """Take a trial as it has just been reported.

        A promotion may make it worse, and then the trial as it is now was the best. On the front, only what
        is trained to the end (`is_complete`) counts.
        """
        if trial.score.is_finite and (self._best is None or by_score(trial) < by_score(self._best)):
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
