"""Forming windows of series on a real Spark, and forecasting from them."""

from __future__ import annotations

import csv
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from spark_hpo import prepare, tune
from spark_hpo.data.schema import ColumnKind, Windows
from spark_hpo.data.table import open_table, read_schema
from spark_hpo.driver.predict import ModelFolder, predict_table
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.starter import start_study
from spark_hpo.train import model_folder
from spark_hpo.train.reference import Code
from spark_hpo.train.tasks.forecast import ForecastTask
from spark_hpo.trial import Split

pytestmark = pytest.mark.spark

DAYS, SHOPS = 60, ("7", "12")
WINDOWS = {"time": "day", "series": "shop", "history": 8, "horizon": 3, "season": 7, "known": ["price"]}


def sales(shop: int, day: int) -> float:
    """Every value occurs once."""
    return 1000.0 * shop + day


def write_steps(
    path: Path, skip: tuple[int, ...] = (), missing: tuple[int, ...] = (), future: int = 0
) -> str:
    """Write the steps of two shops: in any order, and with further days whose sales are not known."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["shop", "day", "sales", "price", "weather"])
        for day in reversed(range(DAYS + future)):
            for i, shop in enumerate(SHOPS):
                is_missing = day >= DAYS or (day in missing and i == 0)
                value = "" if is_missing else sales(i, day)
                if day not in skip:
                    moment = date(2026, 1, 1) + timedelta(days=day)
                    writer.writerow([shop, moment.isoformat(), value, day / 10, ["dry", "wet"][day % 2]])
    return str(path)


def test_windows_do_not_cross_the_cuts_between_splits(spark: Any, tmp_path: Path) -> None:
    source = write_steps(tmp_path / "steps.csv")
    prepared = prepare.csv(spark, str(tmp_path / "out"), input=source, label="sales", windows=WINDOWS)
    table = open_table(str(tmp_path / "out"))
    assert table.schema.windows == Windows(
        value="sales", history=8, horizon=3, season=7, known=("price",), time="day", series=("shop",)
    )
    assert (table.schema.label.name, table.schema.label.shape) == ("sales_next", (3,))
    features = {feature.name: feature for feature in table.schema.features}
    assert {name: (feature.kind, feature.shape) for name, feature in features.items()} == {
        "shop": (ColumnKind.CATEGORICAL, ()),
        "weather": (ColumnKind.CATEGORICAL, ()),
        "sales": (ColumnKind.ARRAY, (8,)),
        "price": (ColumnKind.ARRAY, (11,)),
    }
    ahead: dict[str, set[float]] = {}
    total = 0
    for split in Split:
        rows = pq.read_table(tmp_path / "out" / split).to_pylist()
        total += len(rows)
        for row in rows:
            shop, last = divmod(row["sales"][-1], 1000)
            day = round(last)
            assert row["sales"] == [sales(int(shop), day - 7 + i) for i in range(8)]
            assert row["sales_next"] == [sales(int(shop), day + 1 + i) for i in range(3)]
            assert row["price"] == pytest.approx([(day - 7 + i) / 10 for i in range(11)])
            assert features["shop"].vocabulary[row["shop"] - 1] == SHOPS[int(shop)]
            assert features["weather"].vocabulary[row["weather"] - 1] == ["dry", "wet"][day % 2]
        ahead[split] = {value % 1000 for row in rows for value in row["sales_next"]}
    assert max(ahead["train"]) < min(ahead["validation"])
    assert max(ahead["validation"]) < min(ahead["test"])
    # Per shop, two windows are left out at each of the two cuts.
    assert total == 2 * (DAYS - 8 - 3 + 1) - 8
    assert any("8 of 100 windows are left out" in remark for remark in prepared.remarks)


def test_missing_values_and_steps_are_remarked(spark: Any, tmp_path: Path) -> None:
    source = write_steps(tmp_path / "steps.csv", skip=(20,), missing=(40,))
    prepared = prepare.csv(
        spark, str(tmp_path / "out"), input=source, label="sales", windows={**WINDOWS, "stride": 2}
    )
    assert any(remark.startswith("2 steps are longer than the usual one") for remark in prepared.remarks)
    assert any("'sales' is missing in 1 of 118 rows" in remark for remark in prepared.remarks)
    values = [
        value
        for split in Split
        for row in pq.read_table(tmp_path / "out" / split).to_pylist()
        for value in (*row["sales"], *row["sales_next"])
    ]
    assert np.isfinite(values).all()
    assert sales(0, 40) not in values


def test_two_rows_of_one_time_are_refused(spark: Any, tmp_path: Path) -> None:
    source = write_steps(tmp_path / "steps.csv")
    windows = {key: value for key, value in WINDOWS.items() if key != "series"}
    with pytest.raises(DataError, match=r"60 rows have the same 'day'.*windows\.series"):
        prepare.csv(spark, str(tmp_path / "out"), input=source, label="sales", windows=windows)


def test_windows_that_are_too_long_are_refused(spark: Any, tmp_path: Path) -> None:
    source = write_steps(tmp_path / "steps.csv")
    windows = {**WINDOWS, "history": 58}
    with pytest.raises(DataError, match="no series has 61 steps"):
        prepare.csv(spark, str(tmp_path / "out"), input=source, label="sales", windows=windows)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"windows": {**WINDOWS, "season": 8}}, "windows.season"),
        ({"windows": {**WINDOWS, "horizon": 0}}, "windows.horizon"),
        ({"windows": WINDOWS, "in_place": True}, "windows"),
        ({"windows": WINDOWS, "split": {"key": "shop"}}, "split"),
        ({"windows": {**WINDOWS, "known": "sales"}}, "windows"),
    ],
)
def test_wrong_windows_are_refused(spark: Any, tmp_path: Path, options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare.csv(spark, str(tmp_path / "out"), input="steps.csv", label="sales", **options)
    assert caught.value.key == key


def test_predict_forecasts_once_for_each_series_of_steps(spark: Any, tmp_path: Path) -> None:
    source = write_steps(tmp_path / "steps.csv", future=3)
    prepare.csv(spark, str(tmp_path / "out"), input=source, label="sales", windows=WINDOWS)
    table = open_table(str(tmp_path / "out"))
    network = ForecastTask({}, table.schema).build_model()
    model_folder.export(
        tmp_path / "model",
        code=Code.named("forecast"),
        params={},
        table=table,
        load_checkpoint=lambda: {"model": network.state_dict()},
    )
    rows, answers = predict_table(
        spark, ModelFolder(model=tmp_path / "model"), input=source, output=str(tmp_path / "forecasts")
    )
    assert (rows, answers) == (2, ("prediction",))
    found = pq.read_table(tmp_path / "forecasts").to_pylist()
    last = (date(2026, 1, 1) + timedelta(days=DAYS - 1)).isoformat()
    assert {(row["shop"], row["day"]) for row in found} == {(shop, last) for shop in SHOPS}
    for row in found:  # the untrained model repeats the last season
        shop = SHOPS.index(row["shop"])
        assert row["prediction"] == pytest.approx([sales(shop, DAYS - 7 + i) for i in range(3)])
    # Without the prices of the next days there is no forecast.
    past = write_steps(tmp_path / "past.csv")
    with pytest.raises(DataError, match=r"none of the 2 series.*price"):
        predict_table(spark, ModelFolder(model=tmp_path / "model"), input=past, output=str(tmp_path / "no"))


def test_study_on_spark_forms_the_windows_of_its_table(spark: Any, tmp_path: Path, mlflow_uri: str) -> None:
    source = write_steps(tmp_path / "steps.csv")
    result = tune(
        "forecast",
        {"learning_rate": {"type": "loguniform", "low": 1e-3, "high": 1e-2}, "units": 8},
        metric="scaled_error",
        mode="min",
        data={"path": source, "label": "sales", "windows": WINDOWS},
        trials=1,
        max_resource=2,
        method="random",
        backend="spark",
        spark=spark,
        storage=str(tmp_path / "study"),
        mlflow={"tracking_uri": mlflow_uri, "registered_model": "sales-forecasts"},
    )
    assert read_schema(str(tmp_path / "study" / "table")).windows is not None
    metrics = result.best_trial.metrics
    assert metrics["scaled_error"] < metrics["naive_scaled_error"]
    mlflow.set_tracking_uri(mlflow_uri)
    model = mlflow.pyfunc.load_model("models:/sales-forecasts/1")
    row = {"shop": "7", "weather": "dry", "sales": [1.0] * 8, "price": [1.0] * 11}
    assert len(model.predict(pd.DataFrame([row]))["prediction"][0]) == 3


def test_init_forecasts_where_windows_are_asked_for(tmp_path: Path) -> None:
    source = write_steps(tmp_path / "steps.csv")
    pq.write_table(pacsv.read_csv(source), tmp_path / "steps.parquet")
    windows = {"series": "shop", "history": 8, "horizon": 3}
    config = start_study(str(tmp_path / "steps.parquet"), label="sales", windows=windows).config
    assert (config.task, config.objective.metric) == ("forecast", "scaled_error")
    assert config.data is not None
    assert config.data.prepare is not None
    assert config.data.prepare.windows is not None
    assert config.data.prepare.windows.time == "day"  # the only column of times
    for wrong, key in (
        ({"history": 8}, "--windows.horizon"),
        ({**windows, "series": "store"}, "--windows"),
        ({**windows, "season": 9}, "--windows.season"),
    ):
        with pytest.raises(ConfigError) as caught:
            start_study(str(tmp_path / "steps.parquet"), label="sales", windows=wrong)
        assert caught.value.key == key
