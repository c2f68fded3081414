"""Writes the folder of a trained model, which `Predictor` loads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle

from spark_hpo.data.stored_ranges import stored_ranges
from spark_hpo.data.table import Table
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.network import export_network
from spark_hpo.train.predictor import ASSETS, PICKLED_TASK, Predictor
from spark_hpo.train.reference import Code
from spark_hpo.trial import Params


def export(
    folder: Path,
    *,
    code: Code,
    params: Params,
    table: Table,
    load_checkpoint: Callable[[], Any],
    metrics: Sequence[str] = (),
) -> None:
    """Write a trial's model to a folder that `Predictor.load` reads, and its network for other programs.

    Args:
        code: of the task.
        table: the one that the model was trained on.
        load_checkpoint: returns the state in the trial's checkpoint.
        metrics: of torchmetrics, those that the study measures.
    """
    storage, state = Storage(folder), load_checkpoint()
    checkpoint.save(storage, "weights.pt", {"model": state["model"]})
    if code.by_value:
        storage.write(PICKLED_TASK, cloudpickle.dumps(code.trainable))
    record = {"version": 1, "task": code.reference, "params": dict(params)}
    record |= {"metrics": list(metrics)} if metrics else {}
    record |= {"schema": table.schema.to_json(), "ranges": stored_ranges(table)}
    if "learned" in state:  # for the reader: the weights have been trained with these
        record["learned"] = state["learned"]["values"]
    storage.write("model.json", json.dumps(record, indent=2).encode())
    code.trainable(params, table.schema).save_assets(folder / ASSETS)
    loaded = Predictor.load(folder)
    export_network(folder, loaded.task, loaded.model)
