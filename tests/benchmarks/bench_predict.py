"""Predicting for a table, beside `mlflow.pyfunc.spark_udf`: `python -m tests.benchmarks.bench_predict`.

Both score the same Parquet table with the same model in one session and write all columns with the
predictions. They take turns, so that a busy machine is busy for both; the figures are medians.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from spark_hpo.backend.spark.session import start_session
from spark_hpo.cli.predict import SETTINGS
from spark_hpo.data.schema import ColumnKind, Feature, Label, OriginalColumn, TableSchema
from spark_hpo.data.table import Table
from spark_hpo.driver.predict import ModelFolder, predict_table
from spark_hpo.train import model_folder, predictor
from spark_hpo.train.reference import Code
from spark_hpo.train.tasks.tabular import TabularTask
from tests.benchmarks.page import FOLDER, Page, machine

NUMBERS, TEXTS = 24, 8
VOCABULARY = tuple(f"value {i}" for i in range(50))
THEIRS = "spark_udf of MLflow"
PARAMS = {"hidden_units": 64}


def schema() -> TableSchema:
    numbers = [
        Feature(name=f"x{i}", kind=ColumnKind.NUMERIC, source=f"x{i}", mean=0.5, deviation=2.0)
        for i in range(NUMBERS)
    ]
    texts = [
        Feature(name=f"t{i}", kind=ColumnKind.CATEGORICAL, source=f"t{i}", vocabulary=VOCABULARY)
        for i in range(TEXTS)
    ]
    original = [OriginalColumn(name=f.name, type="double") for f in numbers]
    original += [OriginalColumn(name=f.name, type="string") for f in texts]
    return TableSchema(
        features=(*numbers, *texts),
        label=Label(name="y", classes=("no", "yes")),
        original=(*original, OriginalColumn(name="y", type="string")),
    )


def write_table(path: Path, rows: int) -> pd.DataFrame:
    """Write the rows to score in eight files, and return the first ones."""
    rng = np.random.default_rng(0)
    path.mkdir()
    for number, part in enumerate(np.array_split(np.arange(rows), 8)):
        columns: dict[str, Any] = {f"x{i}": rng.normal(size=len(part)) for i in range(NUMBERS)}
        columns |= {f"t{i}": np.array(VOCABULARY)[rng.integers(0, 50, len(part))] for i in range(TEXTS)}
        pq.write_table(pa.table(columns), path / f"part-{number}.parquet")
    return pq.read_table(path / "part-0.parquet").slice(0, 5).to_pandas()


def write_model(folder: Path, example: pd.DataFrame) -> tuple[ModelFolder, Path]:
    """Write an untrained model for us and as a model of MLflow, with a signature of doubles and strings."""
    import mlflow
    from mlflow.models import infer_signature

    state = TabularTask(PARAMS, schema()).build_model().state_dict()
    model_folder.export(
        folder / "ours",
        code=Code.named("tabular"),
        params=PARAMS,
        table=Table(url="", schema=schema(), manifests={}),
        load_checkpoint=lambda: {"model": state},
    )
    answers = predictor.Predictor.load(folder / "ours").predict(example)
    mlflow.pyfunc.save_model(
        folder / "mlflow",
        loader_module=predictor.__name__,
        data_path=str(folder / "ours"),
        signature=infer_signature(example, answers),
        pip_requirements=[],
    )
    return ModelFolder(model=folder / "ours"), folder / "mlflow"


def by_udf(spark: Any, model: Path, table: Path, output: Path) -> None:
    """Score as a user of MLflow does it by hand."""
    import mlflow

    udf = mlflow.pyfunc.spark_udf(spark, str(model), env_manager="local")
    frame = spark.read.parquet(str(table))
    scored = frame.withColumn("answers", udf(*frame.columns)).select(*frame.columns, "answers.*")
    scored.write.parquet(str(output))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=FOLDER / "predict.md")
    given = parser.parse_args()
    page = Page(
        "# Predicting for a table\n\n"
        f"A model of {NUMBERS} numbers and {TEXTS} texts predicts for {given.rows:,} rows of Parquet "
        "on Spark and writes all columns with its predictions. `spark-hpo predict` and "
        "`spark_udf` of MLflow, called by hand, take turns in one session.\n"
        "`make bench-predict` writes this page.\n\n"
    )
    with tempfile.TemporaryDirectory(prefix="bench-predict-") as scratch:
        folder = Path(scratch)
        ours, theirs = write_model(folder, write_table(folder / "table", given.rows))
        page_of_machine = machine(["pyspark", "mlflow", "torch", "pyarrow", "pandas"])
        spark = start_session("bench", {**SETTINGS, "spark.master": "local[2]", "spark.ui.enabled": "false"})
        contestants = {
            "spark-hpo predict": lambda out: predict_table(
                spark, ours, input=str(folder / "table"), output=str(out), format="parquet"
            ),
            THEIRS: lambda out: by_udf(spark, theirs, folder / "table", out),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(given.rounds + 1):  # the first one starts Python workers
            for i, (name, run) in enumerate(contestants.items()):
                started = time.perf_counter()
                run(folder / f"out-{turn}-{i}")
                if turn:
                    seconds[name].append(time.perf_counter() - started)
        first, second = (
            pd.read_parquet(folder / f"out-0-{i}").sort_values("x0", ignore_index=True) for i in range(2)
        )
        pd.testing.assert_frame_equal(first, second)
        spark.stop()
    page.heading("", "rows/s", "relative to spark_udf")
    slowest = median(seconds[THEIRS])
    for name, times in seconds.items():
        page.row(name, f"{given.rows / median(times):,.0f}", f"{slowest / median(times):.2f}")
    page.say(f"\nMeasured on {page_of_machine}.")
    page.write(given.output)


if __name__ == "__main__":
    main()
