"""What MLflow lacks of a study, written from its journal after the study's own driver has ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from spark_hpo.driver.publish import finish_runs
from spark_hpo.objective import Objective
from spark_hpo.ranking import best_reported
from spark_hpo.study_dir.journal import EventKind, Journal, Outcome, ending_of
from spark_hpo.study_dir.lease import Lease
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.model_registry import RegisteredModel
from spark_hpo.tracking.run_store import RunStatus
from spark_hpo.trial import Report, Split, Trial

logger = logging.getLogger(__name__)

_STALL_LIMIT_S = 60.0  # in which not one run could be written

Publish = Callable[[Trial, Mapping[str, float]], RegisteredModel | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """What a sync has found and done."""

    status: RunStatus  # of the study's run
    trials: int  # in the journal
    written: int  # trials that MLflow lacked, in whole or in part
    model: RegisteredModel | None  # None: the study has not come to its end, or has no model of its own
    is_complete: bool  # whether MLflow has everything now

    def summary(self) -> dict[str, Any]:
        """The JSON line that ends `jobs/tune.py --sync`."""
        return {
            "status": str(self.status),
            "trials": self.trials,
            "written": self.written,
            "complete": self.is_complete,
            "model": self.model and self.model.summary(),
        }


@contextmanager
def journal_at_rest(storage: Storage, objective: Objective) -> Iterator[Journal]:
    """A study's journal, to be read while no driver may start.

    A driver writes the runs of its study itself, and two writers would make some of them twice.

    Raises:
        LeaseError: a driver works on the study.
    """
    lease = Lease.acquire(storage)
    try:
        lease.keep_alive()
        yield Journal(storage, objective)
    finally:
        lease.release()


def write_missing(
    tracker: MlflowTracker, journal: Journal, objective: Objective, *, publish: Publish
) -> Synced:
    """Bring MLflow up to date, and close the tracker.

    Args:
        publish: registers the best trial's model with its metrics on the test split. Called when the study
            has come to its end.

    Raises:
        TrackingError: the model cannot be registered.
    """
    status, best, test = _ending(journal, objective)
    tracker.sync(journal)
    left = len(journal.trials) + 1
    while (before := left) and (left := tracker.wait(_STALL_LIMIT_S)):
        if left >= before:
            break
        logger.info("%d runs are still to be written", left)
    is_complete = finish_runs(tracker, journal, objective, status, best=best, test=test)
    model = publish(best, test) if best is not None and test is not None else None
    return Synced(
        status=status,
        trials=len(journal.trials),
        written=tracker.num_written,
        model=model,
        is_complete=is_complete,
    )


def _ending(
    journal: Journal, objective: Objective
) -> tuple[RunStatus, Trial | None, dict[str, float] | None]:
    """How the last driver has ended; the best trial, and its test if the search has come to its end."""
    ending = ending_of(journal.past)
    if ending is None or ending.outcome is Outcome.FAILED:
        return RunStatus.FAILED, None, None
    if ending.outcome is Outcome.INTERRUPTED:
        return RunStatus.KILLED, None, None
    best = best_reported(journal.trials, _reports(journal), objective)
    tested = None if best is None else journal.tests.get(best.trial_id)
    if best is None or tested is None or tested.resource != best.resource:
        return RunStatus.FINISHED, best, None
    return RunStatus.FINISHED, best, dict(tested.metrics)


def _reports(journal: Journal) -> Iterator[Report]:
    for event in journal.past:
        if event.kind is EventKind.REPORTED and (report := event.report).split is Split.VALIDATION:
            yield report
