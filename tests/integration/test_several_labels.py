"""Several labels from a table that is not prepared: how Spark prepares them, and a whole study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo import prepare
from spark_hpo.cli import main
from spark_hpo.config import StudyConfig, build_config
from spark_hpo.data.loader import Loader
from spark_hpo.data.table import Table, open_table
from spark_hpo.driver.build import build_table
from spark_hpo.driver.precheck import check_study
from spark_hpo.driver.run import run_study
from spark_hpo.driver.table_source import describe, is_ready
from spark_hpo.errors import ConfigError, DataError, SparkHpoError
from spark_hpo.starter import start_study
from spark_hpo.trial import Split
from tests.support.command_line import run_in_process

pytestmark = pytest.mark.spark

ROWS = 1200
LABELS = ["sold", "rooms", "price"]


def goods(rows: int = ROWS) -> dict[str, Any]:
    """`size` decides all labels: whether it is sold, the number of rooms, and the price."""
    rng = np.random.default_rng(0)
    size = rng.normal(size=rows).round(6)
    return {
        "size": size,
        "town": rng.choice(["Oslo", "Rome"], rows),
        "sold": np.where(size > 0, "yes", "no"),
        "rooms": np.digitize(size, (-0.5, 0.5)) + 3,
        "price": (100 + 50 * size).round(6),
        "price_again": (100 + 50 * size).round(6),
        "many_rooms": np.array(["few", "some", "many"])[np.digitize(size, (-0.5, 0.5))],
    }


def write(path: Path, columns: dict[str, Any]) -> str:
    if path.suffix == ".csv":
        pd.DataFrame(columns).to_csv(path, index=False)
    else:
        pq.write_table(pa.table(columns), path, row_group_size=30)
    return str(path)


def delivered(table: Table) -> dict[str, list[float]]:
    """The values of the features and labels of all splits, as a task gets them."""
    found: dict[str, list[float]] = {}
    for split in Split:
        loader = Loader(table, split, rank=0, world_size=1, batch_size=512, seed=0, shuffle_window=None)
        for batch in next(loader.passes(0, 1)):
            for name, values in batch.items():
                found.setdefault(name, []).extend(values.tolist())
    return found


@pytest.mark.parametrize("in_place", [False, True])
def test_prepare_describes_and_delivers_each_label(spark: Any, tmp_path: Path, in_place: bool) -> None:
    columns = goods()
    source = write(tmp_path / ("goods.parquet" if in_place else "goods.csv"), columns)
    prepared = prepare.csv(
        spark, str(tmp_path / "out"), input=source, label=LABELS, clean=True, in_place=in_place
    )
    table = open_table(prepared.output)
    assert [label.name for label in table.schema.labels] == LABELS
    # Few integers are classes and many numbers are not, whichever of the labels they are.
    assert [label.classes for label in table.schema.labels] == [("no", "yes"), ("3", "4", "5"), ()]
    # A copy of a number and an alias of a class would give the labels away.
    assert [feature.name for feature in table.schema.features] == ["size", "town"]
    assert sum("label 'price'" in remark or "label 'rooms'" in remark for remark in prepared.remarks) == 2
    found = delivered(table)
    size = table.schema.features[0]
    sizes = np.array(found["size"]) * size.deviation + size.mean
    assert np.sort(sizes) == pytest.approx(np.sort(columns["size"]), abs=1e-5)
    assert found["sold"] == (sizes > 0).astype(int).tolist()
    assert found["rooms"] == np.digitize(sizes, (-0.5, 0.5)).tolist()
    assert found["price"] == pytest.approx(100 + 50 * sizes, abs=1e-3)
    if not in_place:
        assert set(json.loads((tmp_path / "out/example.json").read_text())[0]) == {"size", "town"}


def test_prepare_leaves_out_rows_without_one_of_the_labels(spark: Any, tmp_path: Path) -> None:
    columns = goods(300)
    texts = {name: [str(value) for value in values] for name, values in columns.items()}
    texts["sold"][3] = texts["price"][3] = texts["price"][5] = ""
    source = write(tmp_path / "goods.csv", texts)
    options = {"input": source, "label": LABELS, "numeric": ["rooms"], "split": {"stratify": "sold"}}
    prepared = prepare.csv(spark, str(tmp_path / "out"), clean=True, **options)
    assert sum(prepared.rows.values()) == 298
    table = open_table(prepared.output)
    assert table.schema.labels[1].is_regression  # as `numeric` says
    sold = [np.mean(delivered_split(table, split, "sold")) for split in Split]
    assert np.ptp(sold) < 0.05


def delivered_split(table: Table, split: Split, name: str) -> list[float]:
    loader = Loader(table, split, rank=0, world_size=1, batch_size=512, seed=0, shuffle_window=None)
    return [value for batch in next(loader.passes(0, 1)) for value in batch[name].tolist()]


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"label": ["sold", "sold"]}, ConfigError, "label"),
        ({"label": ["sold", "cost"]}, DataError, "'cost'"),
        ({"label": ["sold", "price"], "drop": ["price"]}, ConfigError, "drop"),
        ({"label": ["sold", "price"], "text": ["price"]}, ConfigError, "text"),
        (
            {"label": ["price", "sold"], "windows": {"time": "size", "history": 3, "horizon": 2}},
            ConfigError,
            "label",
        ),
    ],
)
def test_prepare_refuses_labels(
    tmp_path: Path, options: dict[str, Any], error: type[SparkHpoError], named: str
) -> None:
    source = write(tmp_path / "goods.csv", goods(60))
    with pytest.raises(error, match=named):
        prepare.csv(None, str(tmp_path / "out"), input=source, **options)  # before Spark starts


def test_command_prepares_several_labels_and_init_studies_them(spark: Any, tmp_path: Path) -> None:
    write(tmp_path / "goods.csv", goods())
    words = ["prepare", "csv", "--input", "goods.csv", "--output", "data/goods"]
    words += [word for name in LABELS for word in ("--label", name)]
    assert run_in_process(main, words, tmp_path).returncode == 0
    start = start_study(str(tmp_path / "data/goods"))
    raw = start_study(str(tmp_path / "goods.csv"), label=LABELS)
    for drafted in (start, raw):
        assert drafted.config.objective.metric == "loss"
        assert {"loss_weight_rooms", "loss_weight_price"} <= set(drafted.config.space)
        assert "sold (2 classes), rooms (3 classes), price (a number)" in drafted.text
    assert raw.config.data is not None
    assert raw.config.data.prepare is not None
    assert (raw.config.data.prepare.label, raw.config.data.prepare.extra_labels) == (
        "sold",
        ("rooms", "price"),
    )


def study(folder: Path, data: dict[str, Any], **settings: Any) -> StudyConfig:
    record: dict[str, Any] = {
        "name": "goods",
        "study_dir": str(folder / "study"),
        "task": "tabular",
        "data": data,
        "objective": {"metric": "loss", "mode": "min"},
        "space": {
            "learning_rate": {"type": "loguniform", "low": 0.01, "high": 0.03},
            "loss_weight_price": {"type": "uniform", "low": 0.5, "high": 2.0},
            "hidden_units": 16,
            "batch_size": 64,
        },
        "search": {"max_resource": 9},
        "budget": {"trials": 2},
    }
    return build_config(record | settings, place="test")


def test_study_describes_a_csv_and_a_catalog_table_with_its_labels(spark: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "goods.csv", goods(300))
    spark.createDataFrame(pd.DataFrame(goods(300))).createOrReplaceTempView("goods_view")
    for folder, place in ((tmp_path / "a", {"path": source}), (tmp_path / "b", {"table": "goods_view"})):
        config = study(folder, {**place, "label": LABELS, "drop": ["many_rooms", "price_again"]})
        describe(config, lambda: spark)
        table = build_table(config, {})
        assert table is not None
        assert [label.name for label in table.schema.labels] == LABELS
        assert [feature.name for feature in table.schema.features] == ["size", "town"]
        assert is_ready(config, None) is False  # no driver has begun the study
    missing = study(tmp_path / "c", {"table": "goods_view", "label": ["sold", "cost"]})
    with pytest.raises(ConfigError) as caught:
        describe(missing, lambda: spark)
    assert (caught.value.key, caught.value.value) == ("data.label", "cost")


def test_study_chooses_among_the_labels_of_a_prepared_table(spark: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "goods.csv", goods(300))
    path = str(tmp_path / "goods")
    prepare.csv(spark, path, input=source, label=LABELS, clean=True)
    for label, expected in ((None, LABELS), (["sold", "price"], ["sold", "price"]), ("sold", ["sold"])):
        config = study(tmp_path, {"path": path, "label": label})
        check_study(config)
        table = build_table(config, {})
        assert table is not None
        assert [found.name for found in table.schema.labels] == expected
        assert [feature.name for feature in table.schema.features] == ["size", "town"]
    weighted = study(tmp_path, {"path": path, "weight": "price"})
    with pytest.raises(ConfigError) as caught:
        check_study(weighted)
    assert caught.value.key == "data.weight"


@pytest.mark.slow
def test_study_of_a_raw_table_registers_a_model_of_all_labels(
    spark: Any, tmp_path: Path, mlflow_uri: str
) -> None:
    data = {"path": write(tmp_path / "goods.parquet", goods()), "label": LABELS}
    data |= {"drop": ["price_again", "many_rooms"], "split": {"stratify": "sold"}}
    mlflow_settings = {"tracking_uri": mlflow_uri, "registered_model": "goods"}
    config = study(tmp_path, data, mlflow=mlflow_settings, training={"metrics": ["auroc", "r2"]})
    best = run_study(config).best.metrics
    assert min(best["sold_accuracy"], best["rooms_auroc"], best["price_r2"]) > 0.9
    constant = json.loads((tmp_path / "study/constant_answer.json").read_text())
    assert all(f"{label}: " in constant["answer"] for label in LABELS)
    assert best["loss"] < constant["value"]
    # The registered model takes raw rows without the labels, and answers in the labels' own values.
    mlflow.set_tracking_uri(mlflow_uri)
    model = mlflow.pyfunc.load_model("models:/goods/1")
    assert model.metadata.signature.inputs.input_names() == ["size", "town"]
    outputs = model.metadata.signature.outputs.input_names()
    assert {"sold_prediction", "rooms_probability_4", "price_prediction"} <= set(outputs)
    answers = model.predict(pd.DataFrame({"size": [-2.0, 0.0, 2.0], "town": ["Oslo", "Rome", "Oslo"]}))
    assert list(answers["sold_prediction"])[::2] == ["no", "yes"]
    assert list(answers["rooms_prediction"]) == [3, 4, 5]
    assert answers["price_prediction"].to_numpy() == pytest.approx([0, 100, 200], abs=40)
