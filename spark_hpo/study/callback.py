"""Callbacks: code of the user's that the driver calls while a study runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from spark_hpo.trial import Assignment, Report, Trial

if TYPE_CHECKING:
    from spark_hpo.study import Study

logger = logging.getLogger(__name__)


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

    def on_study_start(self, study: Study) -> None:
        """A driver begins, with what earlier ones have left in `study.trials`."""

    def on_trial_start(self, study: Study, trial: Trial) -> None:
        """A new trial gets its first assignment."""

    def on_assigned(self, study: Study, assignment: Assignment) -> None:
        """An assignment, a trial's next rung, goes to the backend."""

    def on_report(self, study: Study, trial: Trial, report: Report) -> None:
        """An assignment has ended, well or not; `trial` is what has become of it."""

    def on_trial_end(self, study: Study, trial: Trial) -> None:
        """A trial is out: stopped, completed or failed. Paused ones are not: they may still be promoted."""

    def on_study_end(self, study: Study) -> None:
        """The driver stops: the budget is spent (`study.stopped_by` says which part), or it was interrupted
        or has failed (`study.stopped_by` is None)."""


class Callbacks(Callback):
    """Several as one. What goes wrong in one of them is nobody else's trouble."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks = tuple(callbacks)

    def on_study_start(self, study: Study) -> None:
        self._each("on_study_start", lambda callback: callback.on_study_start(study))

    def on_trial_start(self, study: Study, trial: Trial) -> None:
        self._each("on_trial_start", lambda callback: callback.on_trial_start(study, trial))

    def on_assigned(self, study: Study, assignment: Assignment) -> None:
        self._each("on_assigned", lambda callback: callback.on_assigned(study, assignment))

    def on_report(self, study: Study, trial: Trial, report: Report) -> None:
        self._each("on_report", lambda callback: callback.on_report(study, trial, report))

    def on_trial_end(self, study: Study, trial: Trial) -> None:
        self._each("on_trial_end", lambda callback: callback.on_trial_end(study, trial))

    def on_study_end(self, study: Study) -> None:
        self._each("on_study_end", lambda callback: callback.on_study_end(study))

    def _each(self, event: str, call: Callable[[Callback], None]) -> None:
        for callback in self._callbacks:
            try:
                call(callback)
            except Exception as exc:  # the user's code: a search of days does not end for it
                name = type(callback).__name__
                logger.warning("%s.%s raised %s: %s", name, event, type(exc).__name__, exc, exc_info=True)
