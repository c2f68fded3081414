"""ForecastTask starts from the seasonal-naive forecast and learns to beat it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from spark_hpo.data.schema import (
    ColumnKind,
    Encoding,
    Feature,
    Label,
    OriginalColumn,
    Source,
    TableSchema,
    Windows,
)
from spark_hpo.data.table import Table, open_table
from spark_hpo.errors import ConfigError, DataError, TrialError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import model_folder, predictor
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.constant import constant_answer
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.reference import Code
from spark_hpo.train.tasks.forecast import ForecastTask, seasonal_naive
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Report
from tests.support.torch_versions import needs_newer_export

HISTORY, HORIZON, STEPS = 21, 7, 280
WINDOWS = Windows(value="sales", history=HISTORY, horizon=HORIZON, season=7, known=("promotion",))
SHOPS = ("north", "south", "east")


def windows() -> dict[str, list[Any]]:
    """Windows of three shops: a week that repeats, noise, and promotions that are known ahead."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {name: [] for name in ("shop", "sales", "promotion", "sales_next", "day")}
    for i, shop in enumerate(SHOPS):
        promotion = (rng.random(STEPS) < 0.2).astype(float)
        week = 10.0 * 3**i * (1 + np.sin(2 * np.pi * np.arange(STEPS) / 7) / 2)
        sales = week * (1 + promotion) * (1 + 0.05 * rng.normal(size=STEPS))
        for start in range(STEPS - HISTORY - HORIZON + 1):
            now, end = start + HISTORY, start + HISTORY + HORIZON
            row = (shop, sales[start:now], promotion[start:end], sales[now:end], now)
            for values, value in zip(rows.values(), row, strict=True):
                values.append(value)
    return rows


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    folder = tmp_path_factory.mktemp("windows")
    rows = windows()
    (folder / "raw").mkdir()
    pq.write_table(pa.table(rows), folder / "raw" / "a.parquet", row_group_size=50)
    values = np.concatenate(rows["sales"])
    where = {"train": "day < 201", "validation": "day >= 208 and day < 241", "test": "day >= 248"}
    schema = TableSchema(
        features=(
            Feature(name="shop", kind=ColumnKind.CATEGORICAL, vocabulary=SHOPS),
            Feature(name="sales", kind=ColumnKind.ARRAY, shape=(HISTORY,), mean=400.0, deviation=600.0),
            Feature(name="promotion", kind=ColumnKind.ARRAY, shape=(HISTORY + HORIZON,)),
        ),
        label=Label(
            name="sales_next", shape=(HORIZON,), mean=float(values.mean()), deviation=float(values.std())
        ),
        encoding=Encoding.RAW,
        sources={name: Source(url=str(folder / "raw"), where=text) for name, text in where.items()},
        original=(
            OriginalColumn(name="shop", type="string"),
            OriginalColumn(name="sales", type="array<double>"),
            OriginalColumn(name="promotion", type="array<double>"),
            OriginalColumn(name="sales_next", type="array<double>"),
        ),
        windows=WINDOWS,
    )
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    return open_table(str(folder))


def trained(table: Table, folder: Path, params: dict[str, Any], *, epochs: int) -> tuple[RankSpec, Report]:
    spec = RankSpec(
        study_id="forecasts",
        storage=Storage(folder / "study"),
        trainable="forecast",
        table=table,
        objective=Objective(metric="scaled_error", mode=Mode.MIN),
        settings=TrainingSettings(batch_size=16, evaluate_each_pass=False),
        max_resource=epochs,
        seed=0,
        reader="arrow",
        shuffle_window=1000,
    )
    assignment = Assignment(
        trial_id=0,
        attempt=1,
        params=params,
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=epochs,
        checkpoint=None,
        seed=1,
    )
    report = run_rank(spec, assignment, rank=0, world_size=1)
    assert report.failure is None, report.failure
    return spec, report


@pytest.mark.medium
@pytest.mark.parametrize(("model", "share"), [("mlp", 0.5), ("gru", 0.5), ("transformer", 0.85)])
def test_forecast_task_beats_the_seasonal_naive_forecast(
    table: Table, tmp_path: Path, model: str, share: float
) -> None:
    params = {"model": model, "learning_rate": 0.01, "units": 32}
    _, report = trained(table, tmp_path, params, epochs=12)
    for metric in ("scaled_error", "absolute_error"):
        assert report.metrics[metric] < share * report.metrics[f"naive_{metric}"]


def batch_of(rows: int = 4) -> dict[str, torch.Tensor]:
    found = windows()
    batch = {
        name: torch.tensor(np.array(found[name][:rows]), dtype=torch.float32)
        for name in found
        if name != "shop"
    }
    return {**batch, "shop": torch.ones(rows, dtype=torch.int64)}


def test_untrained_model_is_the_seasonal_naive_forecast(table: Table) -> None:
    task = ForecastTask({}, table.schema)
    batch = batch_of()
    outputs = task.build_model()(batch)
    expected = batch["sales"][:, -7:]  # the last week
    assert torch.allclose(outputs, expected)
    metrics = task.metrics(outputs, batch)
    assert torch.allclose(metrics["absolute_error"], (expected - batch["sales_next"]).abs().mean(dim=1))
    assert torch.equal(metrics["naive_scaled_error"], metrics["scaled_error"])
    assert set(metrics) | {"loss"} == set(ForecastTask.metric_names(table.schema) or ())


def test_seasonal_naive_repeats_the_season_beyond_its_length() -> None:
    forecast = seasonal_naive(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), replace(WINDOWS, season=3, horizon=5))
    assert forecast.tolist() == [[2.0, 3.0, 4.0, 2.0, 3.0]]


def test_scaled_error_divides_by_the_naive_error_within_the_history(table: Table) -> None:
    schema = replace(table.schema, label=replace(table.schema.label, deviation=1e-6))
    batch = batch_of()
    _, scaled = ForecastTask({}, schema)._errors(batch["sales_next"] + 3.0, batch)
    history = batch["sales"].numpy()
    scale = np.abs(history[:, 7:] - history[:, :-7]).mean(axis=1)
    assert scaled.numpy() == pytest.approx(3.0 / scale, rel=1e-4)


@needs_newer_export
def test_exported_model_forecasts_from_a_row_of_the_table(table: Table, tmp_path: Path) -> None:
    spec, report = trained(table, tmp_path, {"units": 8}, epochs=1)
    path = str(report.checkpoint)
    model_folder.export(
        tmp_path / "model",
        code=Code.named("forecast"),
        params={"units": 8},
        table=table,
        load_checkpoint=lambda: checkpoint.load(spec.storage, path),
    )
    model = predictor.Predictor.load(tmp_path / "model")
    found = windows()
    rows = pd.DataFrame({name: found[name][:3] for name in ("shop", "sales", "promotion")})
    said = model.predict(rows)
    assert [len(values) for values in said["prediction"]] == [HORIZON] * 3
    assert (tmp_path / "model" / "network.pt2").exists()


def test_constant_answer_is_the_seasonal_naive_forecast(table: Table, tmp_path: Path) -> None:
    _, report = trained(table, tmp_path, {"units": 8}, epochs=1)
    for metric, of_naive in (("loss", "naive_scaled_error"), ("absolute_error", "naive_absolute_error")):
        found = constant_answer(table, ForecastTask, {}, Objective(metric=metric, mode=Mode.MIN))
        assert found is not None
        assert found.value == pytest.approx(report.metrics[of_naive], rel=1e-5)
    assert constant_answer(table, ForecastTask, {}, Objective(metric="r2", mode=Mode.MAX)) is None


def test_windows_cannot_be_divided_into_folds(table: Table) -> None:
    with pytest.raises(ConfigError) as caught:
        table.divided(3)
    assert caught.value.key == "search.resource"


def test_forecast_task_finds_the_history_in_a_table_of_windows(table: Table) -> None:
    _, sales, promotion = table.schema.features
    schema = replace(table.schema, windows=None, features=(sales,))
    model = ForecastTask({"season": 7}, schema).build_model()
    assert torch.allclose(model(batch_of()), batch_of()["sales"][:, -7:])
    with pytest.raises(DataError, match="sales, promotion"):
        ForecastTask({}, replace(schema, features=(sales, promotion)))


@pytest.mark.parametrize("season", [0, HISTORY])
def test_season_must_be_shorter_than_the_history(table: Table, season: int) -> None:
    with pytest.raises(DataError, match=rf"season \({season}\)"):
        ForecastTask({"season": season}, table.schema)


def test_tasks_refuse_the_label_of_others(table: Table) -> None:
    with pytest.raises(DataError, match="'sales_next' is a list of 7"):
        TabularTask({}, table.schema).build_model()
    with pytest.raises(DataError, match="'x' is one value"):
        ForecastTask({}, replace(table.schema, label=Label(name="x")))


def test_forecast_task_refuses_an_unknown_model(table: Table) -> None:
    with pytest.raises(TrialError, match="mlp, gru, transformer"):
        ForecastTask({"model": "lstm"}, table.schema).build_model()
