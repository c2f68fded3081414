"""Writes to MLflow what it lacks of a study, from the journal, after the study's driver has ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from spark_hpo.config import StudyConfig, defaults
from spark_hpo.driver.build import build_table, open_tracker
from spark_hpo.driver.plan import StudyPlan, plan_study
from spark_hpo.driver.publish import finish_runs, publish_best
from spark_hpo.errors import located
from spark_hpo.objective import Objective
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.events import Outcome, ending_of
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.lease import Lease
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.model_registry import RegisteredModel
from spark_hpo.tracking.study_runs import RunStatus
from spark_hpo.train.reference import Trainable

logger = logging.getLogger(__name__)

_STALL_LIMIT_S = 60.0  # give up when no run could be written for so long
_MLFLOW_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """The outcome of a sync."""

    status: RunStatus  # of the study's run
    trials: int  # in the journal
    written: int  # trials that MLflow lacked, in whole or in part
    model: RegisteredModel | None  # None: the study has not finished, or trains a function
    is_complete: bool  # whether MLflow has everything now

    def summary(self) -> dict[str, Any]:
        """Return the JSON line that ends `jobs/tune.py --sync`."""
        return {
            "status": str(self.status),
            "trials": self.trials,
            "written": self.written,
            "complete": self.is_complete,
            "model": self.model and self.model.summary(),
        }


def sync_study(config: StudyConfig, *, task: Trainable | None = None, space: object = None) -> Synced:
    """Write to MLflow what it lacks of a study: runs, the report and the registered model.

    Nothing is trained, and Spark is not started.

    Args:
        config: as for the study.
        task: as for the study.
        space: as for the study.

    Raises:
        ConfigError: there is no such study.
        LeaseError: a driver runs the study, and writes its runs itself.
        TrackingError: MLflow still does not answer, or refuses.
    """
    with located(config.source), ExitStack() as stack:
        plan = plan_study(config, task=task, space=space)
        storage = Storage(config.study_dir)
        definition = Definition.require(storage)
        definition.check(
            {**config.model_dump(mode="json"), "space": plan.space.to_json()}, defaults=defaults()
        )
        journal = stack.enter_context(_journal_at_rest(storage, plan.objective))
        tracker = open_tracker(plan, definition)
        stack.callback(tracker.close, _MLFLOW_CLOSE_S)
        return _write_missing(plan, definition, journal, tracker)


@contextmanager
def _journal_at_rest(storage: Storage, objective: Objective) -> Iterator[Journal]:
    """Read a study's journal while no driver can start.

    A driver writes the runs of its study itself, and two writers would create some of them twice.
    """
    lease = Lease.acquire(storage)
    try:
        lease.keep_alive()
        yield Journal(storage, objective)
    finally:
        lease.release()


def _write_missing(
    plan: StudyPlan, definition: Definition, journal: Journal, tracker: MlflowTracker
) -> Synced:
    status = _status(journal)
    best = None
    if status is RunStatus.FINISHED:
        record = StudyRecord.read(journal.storage, is_running=False, journal=journal)
        best = next(iter(record.ranking), None)
    tested = None if best is None else journal.tests.get(best.trial_id)
    metrics = {} if best is None or tested is None or tested.resource != best.resource else tested.metrics
    tracker.sync(journal)
    left = len(journal.trials) + 1
    while (before := left) and (left := tracker.wait(_STALL_LIMIT_S)):
        if left >= before:
            break
        logger.info("%d runs are still to be written", left)
    is_complete = finish_runs(tracker, journal, status, best=best, test=metrics)
    model = None
    table = None if best is None else build_table(plan.config, plan.transforms)
    if best is not None:
        if table is not None and plan.has_task:
            definition.check_table(table.fingerprint)
        model = publish_best(tracker, plan, table, best, metrics, journal=journal)
    return Synced(
        status=status,
        trials=len(journal.trials),
        written=tracker.num_written,
        model=model,
        is_complete=is_complete,
    )


def _status(journal: Journal) -> RunStatus:
    """Return how the last driver ended."""
    ending = ending_of(journal.past)
    if ending is None or ending.outcome is Outcome.FAILED:
        return RunStatus.FAILED
    return RunStatus.KILLED if ending.outcome is Outcome.INTERRUPTED else RunStatus.FINISHED
