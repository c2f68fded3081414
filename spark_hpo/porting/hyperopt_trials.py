"""Keeps a hyperopt Trials object, and hyperopt's rules for stopping, up to date with a running study."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hyperopt import Trials
from hyperopt.base import JOB_STATE_DONE, JOB_STATE_ERROR, JOB_STATE_RUNNING, STATUS_NEW

from spark_hpo.porting.hyperopt_objective import RESULT
from spark_hpo.search.samplers.tpe import document_of
from spark_hpo.study import RunningStudy
from spark_hpo.study.callback import Callback
from spark_hpo.trial import Report, Trial, TrialState


@dataclass(eq=False)
class TrialsCallback(Callback):
    """Writes the study's trials into a hyperopt Trials object, after those of an earlier search."""

    trials: Trials
    labels: Sequence[str]  # of the space
    url: str  # of the study; marks its trials, so that a resumed search recognises them

    def __post_init__(self) -> None:
        ours = [document for document in self.trials._dynamic_trials if _is_of(document, self.url)]
        self._documents = {int(document["owner"][1]): document for document in ours}

    def on_study_start(self, study: RunningStudy) -> None:
        self._write(*study.trials.values())

    def on_trial_start(self, study: RunningStudy, trial: Trial) -> None:
        self._write(trial)

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self._write(trial)

    def _write(self, *trials: Trial) -> None:
        for trial in trials:
            document = self._documents.get(trial.trial_id)
            if document is None:
                tids = [other["tid"] for other in self.trials._dynamic_trials]
                document = {"tid": max(tids, default=-1) + 1}
                self._documents[trial.trial_id] = document
                self.trials._insert_trial_docs([document])
            written = hyperopt_document(trial, document["tid"], self.labels)
            document.update(written, owner=[self.url, trial.trial_id])
        self.trials.refresh()


@dataclass(eq=False)
class StopsCallback(Callback):
    """Stops a study as hyperopt's `fmin` does: at a loss, or by the user's rule."""

    labels: Sequence[str]  # of the space
    loss_threshold: float | None = None  # the study stops when a trial has a loss below this
    early_stop_fn: Callable[..., tuple[bool, Sequence[Any]]] | None = None
    """`(trials, *state) -> (stop, state)`, called after each trial that has a loss, with all trials that have
    ended, in the order in which they ended."""

    def __post_init__(self) -> None:
        self._state: Sequence[Any] = []
        self._ended = Trials()

    def on_study_start(self, study: RunningStudy) -> None:
        ended = [trial for trial in study.trials.values() if trial.ended_at is not None]
        for trial in sorted(ended, key=lambda trial: trial.ended_at or 0.0):
            self._check(study, trial)

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self._check(study, trial)

    def _check(self, study: RunningStudy, trial: Trial) -> None:
        if trial.failure is not None:
            return
        if self.loss_threshold is not None and trial.loss < self.loss_threshold:
            study.stop("loss_threshold")
        if self.early_stop_fn is not None:
            self._ended._insert_trial_docs([hyperopt_document(trial, trial.trial_id, self.labels)])
            self._ended.refresh()
            should_stop, self._state = self.early_stop_fn(self._ended, *self._state)
            if should_stop:
                study.stop("early_stop_fn")


@dataclass(eq=False)
class ProgressCallback(Callback):
    """Shows hyperopt's progress bar, or the user's."""

    bar: Callable[..., Any]  # `(initial, total) -> context manager`, as for hyperopt's `show_progressbar`
    total: int | None  # trials of the search; None: no limit

    def __post_init__(self) -> None:
        self._open: Any = None
        self._progress: Any = None

    def on_study_start(self, study: RunningStudy) -> None:
        ended = sum(trial.ended_at is not None for trial in study.trials.values())
        self._open = self.bar(initial=ended, total=self.total)
        self._progress = self._open.__enter__()

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        if study.best is not None:
            self._progress.postfix = f"best loss: {study.best.loss}"
        self._progress.update(1)

    def on_study_end(self, study: RunningStudy) -> None:
        if self._open is not None:
            self._open.__exit__(*sys.exc_info())
            self._open = None


def hyperopt_document(trial: Trial, tid: int, labels: Sequence[str]) -> dict[str, Any]:
    """Return a trial of a study as a document of hyperopt's `Trials.trials`."""
    result = dict(trial.notes.get(RESULT, {"status": STATUS_NEW}))
    if isinstance(result.get("loss"), str):
        result["loss"] = float(result["loss"])  # NaN or infinity, which are text in JSON
    state = JOB_STATE_RUNNING
    if trial.state is not TrialState.RUNNING:
        state = JOB_STATE_DONE if RESULT in trial.notes else JOB_STATE_ERROR
    document = document_of(tid, trial.params, labels, state=state, result=result)
    if state == JOB_STATE_ERROR and trial.failure is not None:
        document["misc"]["error"] = (trial.failure.message.partition(":")[0], trial.failure.traceback)
    for key, seconds in (
        ("book_time", trial.started_at),
        ("refresh_time", trial.ended_at or trial.started_at),
    ):
        # As hyperopt writes it: in UTC, without a time zone.
        document[key] = datetime.datetime.fromtimestamp(seconds, datetime.UTC).replace(tzinfo=None)
    return document


def earlier_documents(trials: Trials, url: str) -> list[dict[str, Any]]:
    """Return the documents in `trials` of trials that are not of this study and have a result."""
    others = [document for document in trials._dynamic_trials if not _is_of(document, url)]
    return [document for document in others if document["state"] == JOB_STATE_DONE]


def _is_of(document: Mapping[str, Any], url: str) -> bool:
    owner = document["owner"]
    return isinstance(owner, list) and len(owner) == 2 and owner[0] == url
