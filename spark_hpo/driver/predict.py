"""Predicts for a table on Spark with a registered model, the best model of a study, or an exported folder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from spark_hpo.data import files
from spark_hpo.data.encode import check_columns, input_names
from spark_hpo.errors import ConfigError, DataError, located, suggestion
from spark_hpo.prepare import scoring as job
from spark_hpo.prepare.windows import latest_windows, takes_steps
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.downloaded import download_model, loader_folders
from spark_hpo.train import scoring

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MODEL_FILE, STUDY_FILE, MLFLOW_FILE = "model.json", "study.json", "MLmodel"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A model on this machine."""

    model: Path  # what `Predictor.load` reads
    code: Path | None = None  # further modules that it imports


@contextlib.contextmanager
def fetched(
    model: str, *, tracking_uri: str | None, export_best: Callable[[Storage, Path], None]
) -> Iterator[ModelFolder]:
    """Yield a model as a folder on this machine.

    Args:
        model: `models:/name/1`, `models:/name@champion` or `runs:/...`; a study directory; the folder of an
            exported model or of a model of MLflow.
        tracking_uri: where a registered model is looked up; None: MLflow's own default.
        export_best: writes the best model of a study to a folder.

    Raises:
        ConfigError: there is no model, or not one of this package.
        TrackingError: MLflow does not answer, or has no such model.
        CheckpointError, NoTrialSucceeded: a study has no model.
    """
    with tempfile.TemporaryDirectory(prefix="spark_hpo-model-") as scratch:
        folder = Path(scratch)
        if model.startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
            yield _of_mlflow(download_model(model, folder, tracking_uri=tracking_uri), model)
            return
        storage = Storage(model)
        if storage.read(STUDY_FILE) is not None:
            export_best(storage, folder / "best")
            yield ModelFolder(model=folder / "best")
            return
        is_mlflow = storage.read(MLFLOW_FILE) is not None
        if not is_mlflow and storage.read(MODEL_FILE) is None:
            raise ConfigError(
                "is neither a study directory nor a model",
                key="model",
                value=model,
                cure="Use models:/NAME/VERSION, the study_dir of a study, or a folder of `spark-hpo export`",
            )
        url = files.absolute(model)
        local = Path(url)
        if not files.is_local(url):
            fs, path = files.filesystem(url)
            local = folder / "copy"
            fs.get(path.rstrip("/") + "/", str(local), recursive=True)
        yield _of_mlflow(local, model) if is_mlflow else ModelFolder(model=local)


def predict_table(
    spark: SparkSession,
    model: ModelFolder,
    *,
    input: str | None = None,
    table: str | None = None,
    output: str,
    columns: Sequence[str] | None = None,
    format: str | None = None,
    version: str | None = None,
    header: bool = True,
    overwrite: bool = False,
) -> tuple[int, tuple[str, ...]]:
    """Predict for each row of a table, and write the rows with the predictions as Parquet.

    A model of windows also takes a table of steps, and forecasts once for each series.

    Args:
        input: a file, folder or URL; None: `table` is given.
        table: a name in Spark's catalog.
        columns: of the input, to copy to the output; None: all, or of steps the series and the time.
        format: csv or parquet; None: by the ending of the input.
        version: of a Delta or Iceberg table; None: the newest.
        header: whether a CSV has column names.
        overwrite: replace an output that exists.

    Returns:
        The number of rows, and the names of the columns with predictions.

    Raises:
        ConfigError: the output exists, or has a column twice.
        DataError: the input cannot be read, lacks a column, or has a row that cannot be encoded.
    """
    if (input is None) == (table is None):
        raise ConfigError("is needed, or table, but not both", key="input")
    job.check_output(output, input, overwrite=overwrite)
    archive = scoring.packed(model.model, model.code)
    predictor = scoring.unpacked(archive)
    answers = predictor.answer_names()
    opened = (
        job.opened_name(spark, table, version)
        if table is not None
        else job.opened(spark, str(input), format=format, version=version, header=header)
    )
    name_of_input = table or input
    with opened as frame:
        there = frame.columns
        windows = predictor.schema.windows
        if windows is not None and takes_steps(frame, predictor.schema):
            with located(str(name_of_input), DataError):
                frame = latest_windows(frame, predictor.schema)
            there = frame.columns
            columns = columns or [*windows.series, windows.time]
        try:
            check_columns(predictor.schema, there)
        except DataError as exc:
            raise DataError(f"{name_of_input}: {exc}") from None
        copied = there if columns is None else list(columns)
        for name in copied:
            if name not in there:
                raise ConfigError(
                    "is not a column of the input",
                    key="columns",
                    value=name,
                    cure=suggestion(name, there),
                )
            if name in answers:
                raise ConfigError(
                    f"{name_of_input} has a column {name!r}, as the predictions do",
                    key="columns",
                    cure="Name the columns to copy, without this one",
                )
        used = dict.fromkeys([*copied, *(name for name in input_names(predictor.schema) if name in there)])
        score = partial(scoring.score, archive=archive)
        rows = job.write_scored(frame.select(*map(job.column, used)), score, answers, output, copied=copied)
    return rows, answers


def _of_mlflow(folder: Path, model: str) -> ModelFolder:
    found = loader_folders(folder)
    if found is None:
        raise ConfigError(
            "is not a model of spark_hpo", key="model", value=model, cure="Use mlflow.pyfunc.spark_udf"
        )
    return ModelFolder(model=found[0], code=found[1])
