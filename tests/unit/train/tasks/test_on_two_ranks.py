"""Two ranks train the tasks of sequences and series as one rank does, whatever lengths their batches have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, Source, TableSchema, Windows
from spark_hpo.data.table import Table, open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.rendezvous.world import RendezvousServer
from spark_hpo.train.training_settings import StrategyKind, TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Report
from tests.support.gloo_ranks import run_ranks

pytestmark = pytest.mark.medium

ROWS, LONGEST, HORIZON = 60, 9, 3


@pytest.fixture(scope="module")
def server() -> Iterator[RendezvousServer]:
    server = RendezvousServer("127.0.0.1", timeout_s=60.0)
    yield server
    server.close()


def opened(folder: Path, columns: dict[str, Any], *features: Feature, label: Label, **more: Any) -> Table:
    raw = folder / "raw"
    raw.mkdir(parents=True)
    pq.write_table(pa.table(columns), raw / "a.parquet", row_group_size=20)
    schema = TableSchema(
        features=features,
        label=label,
        encoding=Encoding.RAW,
        sources={name: Source(url=str(raw)) for name in ("train", "validation", "test")},
        **more,
    )
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    return open_table(str(folder))


def of_sequences(folder: Path) -> Table:
    rng = np.random.default_rng(0)
    words = [list(rng.choice(["a", "b", "c"], rng.integers(0, LONGEST + 1))) for _ in range(ROWS)]
    columns = {"words": words, "label": ["yes" if len(row) > 4 else "no" for row in words]}
    feature = Feature(name="words", kind=ColumnKind.SEQUENCE, shape=(LONGEST,), vocabulary=("a", "b", "c"))
    return opened(folder, columns, feature, label=Label(name="label", classes=("no", "yes")))


def of_windows(folder: Path) -> Table:
    series = np.random.default_rng(0).normal(size=(ROWS, LONGEST + HORIZON)).cumsum(axis=1)
    columns = {"x": list(series[:, :LONGEST]), "next": list(series[:, LONGEST:])}
    return opened(
        folder,
        columns,
        Feature(name="x", kind=ColumnKind.ARRAY, shape=(LONGEST,)),
        label=Label(name="next", shape=(HORIZON,)),
        windows=Windows(value="x", history=LONGEST, horizon=HORIZON, season=2),
    )


def reported(
    table: Table, folder: Path, task: str, model: str, *, address: Any = None, **settings: Any
) -> Report:
    spec = RankSpec(
        study_id=str(folder),  # ranks of one study meet under its name
        storage=Storage(folder / "study"),
        trainable=task,
        table=table,
        objective=Objective(metric="loss", mode=Mode.MIN),
        settings=TrainingSettings(batch_size=ROWS, **settings),
        max_resource=2,
        seed=0,
        reader="arrow",
        shuffle_window=None,
        rendezvous=address,
    )
    assignment = Assignment(
        trial_id=0,
        attempt=1,
        params={"model": model, "units": 8, "heads": 2},
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=2,
        checkpoint=None,
        seed=1,
    )
    if address is None:
        return run_rank(spec, assignment, rank=0, world_size=1)
    return run_ranks(spec, assignment)


@pytest.mark.parametrize(
    ("task", "model", "strategy"),
    [
        ("sequence", "gru", StrategyKind.DDP),
        ("sequence", "transformer", StrategyKind.FSDP),
        ("forecast", "mlp", StrategyKind.DDP),
    ],
)
def test_two_ranks_train_what_one_rank_trains(
    task: str, model: str, strategy: StrategyKind, tmp_path: Path, server: RendezvousServer
) -> None:
    table = (of_windows if task == "forecast" else of_sequences)(tmp_path / "table")
    alone = reported(table, tmp_path / "alone", task, model)
    both = reported(table, tmp_path / "both", task, model, address=server.address, strategy=strategy)
    assert alone.failure is None, alone.failure
    assert both.failure is None, both.failure
    assert both.metrics == pytest.approx(alone.metrics, rel=1e-4)
