"""A trained model outside of the study: a folder that can be loaded and asked.

The folder holds `model.json` (task, parameters, schema) and `weights.pt`. MLflow loads it through
`_load_pyfunc`, and nothing is unpickled but tensors; and, where the task was written in a notebook and can be
imported nowhere, `task.pkl`, its class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import torch

from spark_hpo.data.decode import encode_rows
from spark_hpo.data.loader import Loader
from spark_hpo.data.prepared_rows import Range, stored_ranges
from spark_hpo.data.schema import TableSchema
from spark_hpo.data.table import Table
from spark_hpo.errors import CheckpointError
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import checkpoint
from spark_hpo.train.loop import Trainer
from spark_hpo.train.reference import Code, find_trainable
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.task import Batch, TrainTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.trial import Params, Split

_ROWS_AT_ONCE = 4096


class Predictor:
    """A trained model. Takes rows with the columns of the table's files, the label not needed.

    Of a prepared table these are encoded values; rows of the original table are refused.
    """

    def __init__(
        self, task: TrainTask, model: torch.nn.Module, ranges: Mapping[str, Range] | None = None
    ) -> None:
        """
        Args:
            ranges: of the table's standardised columns, as `stored_ranges` gives them.
        """
        self.task = task
        self._ranges = dict(ranges or {})
        self.schema = task.schema
        self.model = model.eval()

    @classmethod
    def load(cls, folder: str | Path) -> Predictor:
        """Load what `export` wrote.

        Raises:
            CheckpointError: the folder is not whole, or the task's code has changed since.
            ConfigError: the task cannot be imported.
        """
        storage = Storage(folder)
        data = storage.read("model.json")
        if data is None:
            raise CheckpointError(f"{folder}: there is no model.json; this is no exported model")
        record = json.loads(data)
        code = storage.read("task.pkl")
        task_class: Any = find_trainable(record["task"]) if code is None else cloudpickle.loads(code)
        task: TrainTask = task_class(record["params"], TableSchema.from_json(record["schema"]))
        model = task.build_model()
        try:
            model.load_state_dict(checkpoint.load(storage, "weights.pt")["model"])
        except RuntimeError as exc:
            raise CheckpointError(f"{folder}: the weights do not fit {record['task']}: {exc}") from exc
        ranges = {name: (low, high) for name, (low, high) in record.get("ranges", {}).items()}
        return cls(task, model, ranges)

    def predict(self, rows: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The task's `predictions`, one row a row, in order.

        Raises:
            DataError: a column is missing or has the wrong shape, or holds original values where the model
                takes prepared ones.
        """
        with torch.inference_mode():
            answers = [self._answer(batch) for batch in self._batches(rows)]
        columns: dict[str, Any] = {}
        for name in answers[0]:
            values = torch.cat([answer[name] for answer in answers]).numpy()
            columns[name] = values if values.ndim == 1 else values.tolist()
        return pd.DataFrame(columns, index=rows.index)

    def evaluate(self, table: Table, split: Split, *, reader: str = "auto") -> dict[str, float]:
        """The metrics on a split, computed as in training."""
        world = World(rank=0, size=1, device=torch.device("cpu"))
        trainer = Trainer(self.task, world, TrainingSettings(), seed=0, total_steps=1)
        trainer.model.load_state_dict(self.model.state_dict())
        loader = Loader(
            table,
            split,
            rank=0,
            world_size=1,
            batch_size=_ROWS_AT_ONCE,
            seed=0,
            reader=reader,
            shuffle_window=None,
        )
        return trainer.evaluate(loader)

    def _answer(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        return self.task.predictions(self.task.forward(self.model, batch))

    def _batches(self, rows: pd.DataFrame) -> Iterator[Batch]:
        for start in range(0, max(len(rows), 1), _ROWS_AT_ONCE):
            columns = encode_rows(rows.iloc[start : start + _ROWS_AT_ONCE], self.schema, self._ranges)
            yield {name: torch.from_numpy(np.array(values)) for name, values in columns.items()}


def export(
    folder: Path, *, code: Code, params: Params, table: Table, load_checkpoint: Callable[[], Any]
) -> None:
    """Write a trial's model to a folder that `Predictor.load` reads.

    Args:
        code: of the task.
        table: that the model was trained on.
        load_checkpoint: returns the trial's checkpoint.
    """
    storage = Storage(folder)
    checkpoint.save(storage, "weights.pt", {"model": load_checkpoint()["model"]})
    if code.by_value:
        storage.write("task.pkl", cloudpickle.dumps(code.trainable))
    record = {"version": 1, "task": code.reference, "params": dict(params)}
    record |= {"schema": table.schema.to_json(), "ranges": stored_ranges(table)}
    storage.write("model.json", json.dumps(record, indent=2).encode())


def _load_pyfunc(data_path: str) -> Predictor:
    """MLflow's way in: `mlflow.pyfunc.load_model` calls this and then `predict`."""
    return Predictor.load(data_path)
