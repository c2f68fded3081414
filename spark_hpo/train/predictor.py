"""Loads a trained model from its folder, and predicts with it outside of the study.

The folder holds `model.json` (task, parameters, schema), `weights.pt`, `assets` if the task has written some
and, if the class of the task cannot be imported because it was written in a notebook, `task.pkl`. MLflow
loads the folder through `_load_pyfunc`. Only tensors are unpickled, and the class in `task.pkl`.
`network.pt2` and `network.json` are for programs without this package.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pandas as pd
import torch

from spark_hpo.data.encode import Columns, encode_batch, encode_rows
from spark_hpo.data.prepared_rows import Range
from spark_hpo.data.raw_rows import class_values
from spark_hpo.data.schema import TableSchema
from spark_hpo.errors import CheckpointError
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.metric_names import label_of
from spark_hpo.train.network import blank_batch
from spark_hpo.train.reference import find_trainable
from spark_hpo.train.task import Batch, TrainTask
from spark_hpo.trial import Split

if TYPE_CHECKING:
    from spark_hpo.data.table import Table

ASSETS = "assets"  # folder in an exported model
PICKLED_TASK = "task.pkl"
_BATCH_ROWS = 4096


class Predictor:
    """A trained model that predicts for rows of the original table; the label is not needed.

    If schema.json does not describe the original table, because an older version prepared it, the model takes
    rows of the prepared table and refuses others.
    """

    def __init__(
        self,
        task: TrainTask,
        model: torch.nn.Module,
        ranges: Mapping[str, Range] | None = None,
        metrics: Sequence[str] = (),
    ) -> None:
        """
        Args:
            ranges: of the table's standardised columns, as `stored_ranges` returns them.
            metrics: of torchmetrics, that `evaluate` returns besides those of the task.
        """
        self.task = task
        self._ranges = dict(ranges or {})
        self._metrics = tuple(metrics)
        self.schema = task.schema
        self.model = model.eval()

    @classmethod
    def load(cls, folder: str | Path) -> Predictor:
        """Load a folder that `export` has written.

        Raises:
            CheckpointError: a file is missing or damaged, or the weights do not fit the task's code.
            ConfigError: the task cannot be imported.
        """
        storage = Storage(folder)
        data = storage.read("model.json")
        if data is None:
            raise CheckpointError(f"{folder}: is not an exported model, because it has no model.json")
        record = json.loads(data)
        code = storage.read(PICKLED_TASK)
        task_class: Any = find_trainable(record["task"]) if code is None else cloudpickle.loads(code)
        task: TrainTask = task_class(record["params"], TableSchema.from_json(record["schema"]))
        if (assets := Path(folder, ASSETS)).is_dir():
            task.assets = assets
        model = task.build_model()
        try:
            model.load_state_dict(checkpoint.load(storage, "weights.pt")["model"])
        except RuntimeError as exc:
            raise CheckpointError(f"{folder}: the weights do not fit {record['task']}: {exc}") from exc
        ranges = {name: (low, high) for name, (low, high) in record.get("ranges", {}).items()}
        return cls(task, model, ranges, record.get("metrics", ()))

    def predict(self, rows: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return the task's `predictions` as columns, with one row per row of `rows`, in the same order.

        A tensor of shape [rows] becomes a column of numbers, one of more dimensions a column of lists. A
        model of original rows gives class codes in `prediction` as the label's own values, and `probability`
        as a column for each class, such as `probability_yes`.

        Args:
            params: not used; MLflow passes it.

        Raises:
            DataError: a column is missing, or a value cannot be encoded.
        """
        return self._answers(self._batches(rows)).set_index(rows.index)

    def predict_batch(self, batch: Mapping[str, Any]) -> pd.DataFrame:
        """Return the predictions, as `predict`, for Arrow arrays of one length by column.

        Raises:
            DataError: a value cannot be encoded.
        """
        if not self.schema.takes_raw_rows:
            return self.predict(pd.DataFrame({name: values.to_pandas() for name, values in batch.items()}))
        rows = len(next(iter(batch.values())))
        slices = (
            {name: values.slice(start, _BATCH_ROWS) for name, values in batch.items()}
            for start in range(0, max(rows, 1), _BATCH_ROWS)
        )
        return self._answers(_tensors(encode_batch(part, self.schema)) for part in slices)

    def answer_names(self) -> tuple[str, ...]:
        """Return the names of the columns that `predict` returns."""
        return tuple(map(str, self._answers([blank_batch(self.schema)])))

    def evaluate(
        self, table: Table, split: Split, *, reader: str = "auto", metrics: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Return the metrics on a split, computed as in training.

        Args:
            metrics: of torchmetrics, besides those of the task; None: those of the study.
        """
        # Imported here: a model that only answers does not need the training loop.
        from spark_hpo.train.model_metrics import measure

        names = self._metrics if metrics is None else tuple(metrics)
        return measure(self.task, self.model, table, split, reader=reader, metrics=names)

    def _answers(self, batches: Iterable[Batch]) -> pd.DataFrame:
        with torch.inference_mode():
            predictions = [self._predictions(batch) for batch in batches]
        columns: dict[str, Any] = {}
        for name in predictions[0]:
            values = torch.cat([prediction[name] for prediction in predictions]).numpy()
            columns |= self._columns(name, values)
        return pd.DataFrame(columns)

    def _columns(self, name: str, values: np.ndarray[Any, Any]) -> dict[str, Any]:
        label, answer = label_of(name, self.schema)
        classes = class_values(self.schema.with_only(label)) if self.schema.takes_raw_rows else []
        if classes and answer == "prediction" and values.ndim == 1 and values.dtype.kind == "i":
            return {name: np.array(classes, object if isinstance(classes[0], str) else None)[values]}
        if classes and answer == "probability" and values.shape[1:] == (len(classes),):
            return {f"{name}_{text}": values[:, i] for i, text in enumerate(label.classes)}
        return {name: values if values.ndim == 1 else values.tolist()}

    def _predictions(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        return self.task.predictions(self.task.forward(self.model, batch))

    def _batches(self, rows: pd.DataFrame) -> Iterator[Batch]:
        for start in range(0, max(len(rows), 1), _BATCH_ROWS):
            yield _tensors(encode_rows(rows.iloc[start : start + _BATCH_ROWS], self.schema, self._ranges))


def _tensors(columns: Columns) -> Batch:
    return {name: torch.from_numpy(np.array(values)) for name, values in columns.items()}


def _load_pyfunc(data_path: str) -> Predictor:
    """Load the model for `mlflow.pyfunc.load_model`, which then calls `predict`."""
    return Predictor.load(data_path)
