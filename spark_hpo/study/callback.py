"""Callbacks: user code that the driver calls while a study runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Concatenate, ParamSpec, Protocol

from spark_hpo.objective import Objective
from spark_hpo.study.progress import Budget, Progress
from spark_hpo.study_dir.definition import Definition
from spark_hpo.trial import Assignment, Report, Trial, TrialState

logger = logging.getLogger(__name__)

P = ParamSpec("P")


class RunningStudy(Protocol):
    """The part of a study that callbacks may use. Everything but `stop` is for reading."""

    @property
    def definition(self) -> Definition:
        """The identity of the study and its settings, as its directory has them."""
        ...

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
    def seconds_left(self) -> float | None:
        """The expected seconds until the study ends, from what was seen; None: nothing has been seen yet."""
        ...

    @property
    def stopped_by(self) -> str | None:
        """The limit of the budget, stopping rule or callback that ended the search; None: it has not ended,
        was interrupted or failed."""
        ...

    @property
    def is_paused(self) -> bool:
        """True while a request pauses the study."""
        ...

    def stop(self, reason: str) -> None:
        """Start no further assignments, let running ones finish, and end the search."""
        ...


class Callback:
    """Observes a study from the driver. Override the methods that you need; by default they do nothing.

    The calls for a trial that is promoted once and then stopped:
        on_study_start, on_trial_start, on_assigned, on_report, on_assigned, on_report, on_trial_end,
        on_study_end, on_tested

    Methods are called one at a time, in the order of the journal, after the event is in the journal. The
    driver waits for them, so do slow work in a thread. Exceptions are logged and the study continues, except
    that `KeyboardInterrupt` interrupts it like Ctrl-C. `study.stop("...")` ends the search regularly. Events
    of earlier drivers are not repeated when a study resumes; `study.trials` has their results.
    """

    def on_study_start(self, study: RunningStudy) -> None:
        """A driver starts."""

    def on_trial_start(self, study: RunningStudy, trial: Trial) -> None:
        """A new trial gets its first assignment."""

    def on_assigned(self, study: RunningStudy, assignment: Assignment) -> None:
        """An assignment, the next rung of a trial, is submitted."""

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        """An assignment has succeeded or failed; `trial` includes the report."""

    def on_trial_end(self, study: RunningStudy, trial: Trial) -> None:
        """A trial is stopped, completed or failed. Not called for paused trials, which may be promoted."""

    def on_study_end(self, study: RunningStudy) -> None:
        """The search ends; see `study.stopped_by`."""

    def on_tested(self, study: RunningStudy, trial: Trial, metrics: Mapping[str, float]) -> None:
        """After the search: the best trial has these metrics on the test split."""


def call_each(
    callbacks: Iterable[Callback],
    method: Callable[Concatenate[Callback, P], None],
    *args: P.args,
    **kwargs: P.kwargs,
) -> None:
    """Call a method, such as `Callback.on_report`, of each callback. Logs errors of the user's code."""
    for callback in callbacks:
        try:
            getattr(callback, method.__name__)(*args, **kwargs)
        except Exception as exc:  # user code can raise anything
            name = f"{type(callback).__name__}.{method.__name__}"
            logger.warning("%s raised %s: %s", name, type(exc).__name__, exc, exc_info=True)
