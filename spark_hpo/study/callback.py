"""Callbacks: user code that the driver calls while a study runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from spark_hpo.objective import Objective
from spark_hpo.study.progress import Budget, Progress
from spark_hpo.trial import Assignment, Report, Trial, TrialState

logger = logging.getLogger(__name__)


class RunningStudy(Protocol):
    """The part of a study that callbacks may use. Everything but `stop` is for reading."""

    @property
    def objective(self) -> Objective: ...

    @property
    def budget(self) -> Budget: ...

    @property
    def progress(self) -> Progress: ...

    @property
    def trials(self) -> Mapping[int, Trial]:
        """All trials by id, as the journal has them now."""
        ...

    @property
    def states(self) -> Mapping[TrialState, int]:
        """The number of trials in each state."""
        ...

    @property
    def best(self) -> Trial | None:
        """The trial with the best score ever reported, as it was then."""
        ...

    @property
    def stopped_by(self) -> str | None:
        """The limit of the budget, stopping rule or callback that ended the search; None: it has not ended,
        was interrupted or failed."""
        ...

    def stop(self, reason: str) -> None:
        """Start no further assignments, let running ones finish, and end the search."""
        ...


class Callback:
    """Watches a study from the driver. Override what you need; all methods do nothing here.

    A trace of one trial that is promoted once and stopped then:
        on_study_start, on_trial_start, on_assigned, on_report, on_assigned, on_report, on_trial_end,
        on_study_end

    Methods are called one at a time, in the order of the journal, and what they tell is in the journal
    already. They hold up the driver, so what takes long belongs into a thread. One that raises is logged, and
    the study goes on; `KeyboardInterrupt` ends it as Ctrl-C does. `study.stop("...")` ends it in good order.
    What an earlier driver has done is not told again when a study is resumed: `study.trials` has it.
    """

    def on_study_start(self, study: RunningStudy) -> None:
        """A driver begins, with what earlier ones have left in `study.trials`."""

    def on_trial_start(self, study: RunningStudy, trial: Trial) -> None:
        """A new trial gets its first assignment."""

    def on_assigned(self, study: RunningStudy, assignment: Assignment) -> None:
        """An assignment, a trial's next rung, goes to the backend."""

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        """An assignment has ended, well or not; `trial` is what has become of it."""

    def on_trial_end(self, study: RunningStudy, trial: Trial) -> None:
        """A trial is out: stopped, completed or failed. Paused ones are not: they may still be promoted."""

    def on_study_end(self, study: RunningStudy) -> None:
        """The driver stops: the budget is spent (`study.stopped_by` says which part), or it was interrupted
        or has failed (`study.stopped_by` is None)."""


class Callbacks(Callback):
    """Several as one. What goes wrong in one of them is nobody else's trouble."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks = tuple(callbacks)

    def on_study_start(self, study: RunningStudy) -> None:
        self._each("on_study_start", lambda callback: callback.on_study_start(study))

    def on_trial_start(self, study: RunningStudy, trial: Trial) -> None:
        self._each("on_trial_start", lambda callback: callback.on_trial_start(study, trial))

    def on_assigned(self, study: RunningStudy, assignment: Assignment) -> None:
        self._each("on_assigned", lambda callback: callback.on_assigned(study, assignment))

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self._each("on_report", lambda callback: callback.on_report(study, trial, report))

    def on_trial_end(self, study: RunningStudy, trial: Trial) -> None:
        self._each("on_trial_end", lambda callback: callback.on_trial_end(study, trial))

    def on_study_end(self, study: RunningStudy) -> None:
        self._each("on_study_end", lambda callback: callback.on_study_end(study))

    def _each(self, event: str, call: Callable[[Callback], None]) -> None:
        for callback in self._callbacks:
            try:
                call(callback)
            except Exception as exc:  # the user's code: a search of days does not end for it
                name = type(callback).__name__
                logger.warning("%s.%s raised %s: %s", name, event, type(exc).__name__, exc, exc_info=True)
