"""A cross-validation on a real Spark: folds side by side, and one whose process dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.driver.run import run_study
from spark_hpo.study_dir.journal import EventKind, Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.tabular import TabularTask
from spark_hpo.trial import Params
from tests.support.mlflow_database import write_database
from tests.support.tables import clusters_study, write_clusters

pytestmark = pytest.mark.spark

_FOLDS = 4


def _dying_task(marker: Path) -> type[TabularTask]:
    class DyingTask(TabularTask):
        """Kills the process of the first model that is built, on whichever fold."""

        def __init__(self, params: Params, schema: Any) -> None:
            super().__init__(params, schema)
            try:
                marker.touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    return DyingTask


def test_cross_validation_on_spark_repeats_only_the_fold_that_was_lost(spark: Any, tmp_path: Path) -> None:
    write_clusters(tmp_path / "table")
    config = clusters_study(
        tmp_path,
        search={"resource": "folds", "max_resource": _FOLDS, "epochs": 2, "scheduler": "full"},
        budget={"trials": 2},
        backend="spark",
        mlflow={"tracking_uri": write_database(tmp_path)},
    )
    result = run_study(config, task=_dying_task(tmp_path / "killed"), spark=spark)
    events = Journal(Storage(config.study_dir), config.objective.build()).past
    folds = [event.report for event in events if event.kind is EventKind.FOLD]
    lost = [event.report for event in events if event.kind is EventKind.LOST]
    assert len(lost) == 1
    assert {report.key for report in folds} == {(trial, fold) for trial in (0, 1) for fold in (1, 2, 3, 4)}
    assert [report.key for report in folds if report.attempt == 2] == [lost[0].key]
    assert _most_at_once(events) == 2, "local[2] has two slots"
    assert result.best.resource == _FOLDS
    assert result.best.spread["accuracy"] > 0
    assert result.test["accuracy"] > 0.7
    assert result.model is not None


def _most_at_once(events: Any) -> int:
    running: set[Any] = set()
    most = 0
    for event in events:
        if event.kind is EventKind.ASSIGNED:
            running.add(event.assignment.key)
        elif event.kind in (EventKind.FOLD, EventKind.LOST, EventKind.REPORTED):
            running.discard(event.report.key)
        most = max(most, len(running))
    return most
