"""The number of trials of a search, as other libraries count it."""

from __future__ import annotations

from spark_hpo.study import RunningStudy
from spark_hpo.study.callback import Callback
from spark_hpo.trial import Trial


class TrialLimit(Callback):
    """Ends a search after so many trials, whatever has become of them.

    Not the budget of the study, which cannot change: a search may go on later with a higher number.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def on_study_start(self, study: RunningStudy) -> None:
        self._count(study)

    def on_trial_start(self, study: RunningStudy, trial: Trial) -> None:
        self._count(study)

    def _count(self, study: RunningStudy) -> None:
        if len(study.trials) >= self._limit:
            study.stop("trials")
