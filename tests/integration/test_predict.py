"""`spark-hpo predict` on a real Spark: the rows of a table with the model's predictions, as Parquet."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from spark_hpo import prepare
from spark_hpo.data.table import Table, open_table
from spark_hpo.driver.predict import ModelFolder, fetched, predict_table
from spark_hpo.errors import ConfigError, DataError, TrackingError
from spark_hpo.train import model_folder, predictor
from spark_hpo.train.reference import Code
from spark_hpo.train.tasks.tabular import TabularTask

pytestmark = pytest.mark.spark
HEADER = ["age", "city of birth", "born.on", "paid", "label"]


def rows(seed: int, count: int) -> pd.DataFrame:
    rng = random.Random(seed)
    made = [
        [
            rng.choice([rng.randrange(18, 90), rng.randrange(18, 90), None]),
            rng.choice(["Rome", "Oslo", " São Paulo "]),
            f"{rng.randrange(1, 29)}.{rng.randrange(1, 13)}.{rng.randrange(1950, 2010)}",
            f"${rng.randrange(10**5):,}.50",
            rng.choice(["yes", "no"]),
        ]
        for _ in range(count)
    ]
    return pd.DataFrame(made, columns=HEADER)


def export(table: Table, folder: Path) -> Path:
    """Write an untrained model of a table."""
    params = {"hidden_units": 8}
    state = TabularTask(params, table.schema).build_model().state_dict()
    model_folder.export(
        folder,
        code=Code.named("tabular"),
        params=params,
        table=table,
        load_checkpoint=lambda: {"model": state},
    )
    return folder


@pytest.fixture(scope="module")
def model(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("people")
    rows(0, 300).to_csv(folder / "people.csv", index=False)
    prepare.csv(
        spark,
        str(folder / "table"),
        input=str(folder / "people.csv"),
        label="label",
        clean=True,
        keep=["paid"],
    )
    return ModelFolder(model=export(open_table(str(folder / "table")), folder / "model"))


def test_predict_table_appends_what_the_model_predicts_for_a_csv(
    spark: Any, model: ModelFolder, tmp_path: Path
) -> None:
    given = rows(1, 200).drop(columns="label").assign(**{"row number": range(200)})
    given.to_csv(tmp_path / "new.csv", index=False)
    count, answers = predict_table(
        spark, model, input=str(tmp_path / "new.csv"), output=str(tmp_path / "out"), columns=["row number"]
    )
    assert (count, answers) == (200, ("prediction", "probability_no", "probability_yes"))
    written = pd.read_parquet(tmp_path / "out")
    assert list(written) == ["row number", *answers]
    written = written.astype({"row number": int}).sort_values("row number", ignore_index=True)
    expected = predictor.Predictor.load(model.model).predict(given)
    pd.testing.assert_frame_equal(written[list(answers)], expected)


def test_predict_table_keeps_all_columns_of_parquet(spark: Any, model: ModelFolder, tmp_path: Path) -> None:
    given = rows(2, 50).assign(extra=[[i, i] for i in range(50)], when=pd.Timestamp("2024-01-31"))
    given.astype({"when": "datetime64[us]"}).to_parquet(tmp_path / "new.parquet")
    predict_table(spark, model, input=str(tmp_path / "new.parquet"), output=str(tmp_path / "out"))
    written = pd.read_parquet(tmp_path / "out")
    assert list(written) == [*given, "prediction", "probability_no", "probability_yes"]
    assert sorted(map(list, written["extra"])) == list(given["extra"])
    expected = predictor.Predictor.load(model.model).predict(given)
    by_row = np.argsort([pair[0] for pair in written["extra"]])
    assert written["prediction"].iloc[by_row].tolist() == expected["prediction"].tolist()


def test_predict_table_takes_the_name_of_a_table(spark: Any, model: ModelFolder, tmp_path: Path) -> None:
    spark.createDataFrame(rows(6, 9).astype(object).where(lambda f: f.notna(), None)).createOrReplaceTempView(
        "new_rows"
    )
    predict_table(spark, model, table="new_rows", output=str(tmp_path / "out"))
    assert len(pd.read_parquet(tmp_path / "out")) == 9
    with pytest.raises(ConfigError) as raised:
        predict_table(spark, model, table="no_rows", output=str(tmp_path / "none"))
    assert raised.value.key == "table"


def test_predict_table_reads_the_wanted_version_of_a_delta_table(
    spark: Any, model: ModelFolder, tmp_path: Path
) -> None:
    deltalake = pytest.importorskip("deltalake")
    for seed in (7, 8):
        given = pa.Table.from_pandas(rows(seed, 10), preserve_index=False)
        deltalake.write_deltalake(str(tmp_path / "new"), given, mode="append")
    for version, expected in ((None, 20), ("0", 10)):
        predict_table(
            spark,
            model,
            input=str(tmp_path / "new"),
            version=version,
            output=str(tmp_path / f"out{expected}"),
        )
        assert len(pd.read_parquet(tmp_path / f"out{expected}")) == expected


def test_predict_table_names_a_value_that_cannot_be_encoded(
    spark: Any, model: ModelFolder, tmp_path: Path
) -> None:
    given = rows(3, 50)
    given.loc[17, "born.on"] = "soon"
    given.to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(DataError, match=r"new.csv: column 'born.on': 'soon' is not a date"):
        predict_table(spark, model, input=str(tmp_path / "new.csv"), output=str(tmp_path / "out"))


def test_predict_table_names_a_missing_column(spark: Any, model: ModelFolder, tmp_path: Path) -> None:
    rows(3, 5).drop(columns=["paid"]).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(DataError, match="no column paid"):
        predict_table(spark, model, input=str(tmp_path / "new.csv"), output=str(tmp_path / "out"))


def test_predict_table_keeps_an_output_that_exists_unless_told_otherwise(
    spark: Any, model: ModelFolder, tmp_path: Path
) -> None:
    rows(4, 5).to_csv(tmp_path / "new.csv", index=False)
    places = {"input": str(tmp_path / "new.csv"), "output": str(tmp_path / "out")}
    predict_table(spark, model, **places)
    with pytest.raises(ConfigError) as raised:
        predict_table(spark, model, **places)
    assert raised.value.key == "output"
    rows(5, 7).to_csv(tmp_path / "new.csv", index=False)
    predict_table(spark, model, **places, overwrite=True)
    assert len(pd.read_parquet(tmp_path / "out")) == 7


def test_predict_table_refuses_a_column_that_has_the_name_of_the_predictions(
    spark: Any, model: ModelFolder, tmp_path: Path
) -> None:
    rows(4, 5).assign(prediction=1).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(ConfigError) as raised:
        predict_table(spark, model, input=str(tmp_path / "new.csv"), output=str(tmp_path / "out"))
    assert raised.value.key == "columns"


def never(*_: object) -> None:
    raise AssertionError("not a study")


def test_fetched_takes_the_folder_of_a_model_and_refuses_others(model: ModelFolder, tmp_path: Path) -> None:
    with fetched(str(model.model), tracking_uri=None, export_best=never) as found:
        assert found == model
    with (
        pytest.raises(ConfigError, match="neither a study directory nor a model"),
        fetched(str(tmp_path), tracking_uri=None, export_best=never),
    ):
        pass


def test_fetched_names_a_model_that_is_not_registered(mlflow_uri: str) -> None:
    before = mlflow.get_tracking_uri()
    with (
        pytest.raises(TrackingError, match="models:/nothing/1"),
        fetched("models:/nothing/1", tracking_uri=mlflow_uri, export_best=never),
    ):
        pass
    assert mlflow.get_tracking_uri() == before, "the address of the process is as it was"
