"""A cross-validation on a real Spark: folds side by side, and one whose process dies."""

from __future__ import annotations

import os
import signal
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo import prepare
from spark_hpo.data.loader import Loader
from spark_hpo.data.table import Table, open_table
from spark_hpo.driver.run import run_study
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.trial import Params, Split
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


_ROWS = 300


@pytest.fixture(scope="module")
def sales(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, list[Any]]]:
    rng = np.random.default_rng(1)
    columns: dict[str, list[Any]] = {
        "row": list(range(_ROWS)),
        "customer": [int(n) for n in rng.integers(0, 30, _ROWS)],
        "day": [date(2026, 1, 1) + timedelta(days=int(n)) for n in rng.integers(0, 90, _ROWS)],
        "returned": ["it's no" if n else "yes" for n in rng.integers(0, 4, _ROWS)],
    }
    folder = tmp_path_factory.mktemp("sales")
    pq.write_table(pa.table(columns), folder / "sales.parquet", row_group_size=50)
    return str(folder), columns


@pytest.mark.parametrize("is_copy", [True, False], ids=["copy", "in place"])
@pytest.mark.parametrize("section", [{"group": "customer"}, {"time": "day"}, {"stratify": "returned"}])
def test_folds_follow_the_split_of_the_table(
    spark: Any,
    tmp_path: Path,
    sales: tuple[str, dict[str, list[Any]]],
    section: dict[str, Any],
    is_copy: bool,
) -> None:
    source, columns = sales
    output = str(tmp_path / "table")
    prepare.csv(spark, output, input=source, label="returned", split=section, in_place=not is_copy)
    table = open_table(output)
    held_out: list[int] = []
    divided = table.divided(3)
    for number in (1, 2, 3):
        fold = divided.fold(number, 3, seed=0)
        training, out = _rows(fold, Split.TRAIN), _rows(fold, Split.VALIDATION)
        held_out += out
        if "group" in section:
            groups = columns["customer"]
            assert {groups[i] for i in training}.isdisjoint(groups[i] for i in out)
        elif "time" in section:
            days = columns["day"]
            assert max(days[i] for i in training) < min(days[i] for i in out)
        else:
            yes = Counter(columns["returned"][i] for i in out)["yes"]
            everything = [*training, *out]
            share = Counter(columns["returned"][i] for i in everything)["yes"] / 3
            assert abs(yes - share) <= 1
    usable = [*_rows(table, Split.TRAIN), *_rows(table, Split.VALIDATION)]
    assert len(held_out) == len(set(held_out))
    assert set(held_out) <= set(usable)
    assert "time" in section or set(held_out) == set(usable)


def _rows(table: Table, split: Split) -> list[int]:
    """The values of the column `row`, which is standardised."""
    loader = Loader(table, split, rank=0, world_size=1, batch_size=64, seed=0, shuffle_window=None)
    (row,) = (feature for feature in table.schema.features if feature.name == "row")
    values = [v for batches in loader.passes(0, 1) for batch in batches for v in batch["row"].tolist()]
    return sorted(round(value * row.deviation + row.mean) for value in values)


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
