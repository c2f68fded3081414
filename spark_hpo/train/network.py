"""Exports the network of a model with `torch.export`, for programs that do not have this package."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spark_hpo.data.encode import delivered
from spark_hpo.data.raw_rows import class_values
from spark_hpo.data.schema import TableSchema
from spark_hpo.train.task import Batch, TrainTask

logger = logging.getLogger(__name__)

PROGRAM_FILE = "network.pt2"
NOTE_FILE = "network.json"
_EXAMPLE_ROWS = 4  # torch.export would take 0 or 1 for the only number of rows


def export_network(folder: Path, task: TrainTask, model: nn.Module) -> bool:
    """Write the network as `network.pt2`, and its inputs and outputs as `network.json`.

    `torch.export.load("network.pt2").module()` takes a dict of tensors: the columns of the table as the model
    receives them, encoded. It returns the task's predictions by name.

    Returns:
        Whether the task allows it: its code must not depend on the values of tensors.
    """
    batch = blank_batch(task.schema)
    rows = torch.export.Dim("rows")
    network = _Network(task, model.eval())
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                network, (batch,), dynamic_shapes=({name: {0: rows} for name in batch},), strict=False
            )
            torch.export.save(program, str(folder / PROGRAM_FILE))
            outputs = network(batch)
    except Exception as exc:  # the user's code and torch can raise anything
        logger.info("the network of %s cannot be exported: %s", type(task).__name__, str(exc)[:300])
        (folder / PROGRAM_FILE).unlink(missing_ok=True)
        return False
    note = {
        "version": 1,
        "torch": torch.__version__,
        "inputs": [_described(name, tensor) for name, tensor in batch.items()],
        "outputs": [_described(name, tensor) for name, tensor in outputs.items()],
        "classes": class_values(task.schema),
        **{f"classes of {e.label.name}": list(e.label.classes) for e in task.schema.extra_labels},
    }
    (folder / NOTE_FILE).write_text(json.dumps(note, indent=1))
    return True


def blank_batch(schema: TableSchema) -> Batch:
    """Return a batch of zeros, without the label."""
    columns = [c for c in delivered(schema.for_prediction()) if c.name != schema.label.name]
    return {c.name: torch.from_numpy(np.zeros((_EXAMPLE_ROWS, *c.shape), c.dtype)) for c in columns}


class _Network(nn.Module):
    """A task's forward pass and predictions as one module."""

    def __init__(self, task: TrainTask, model: nn.Module) -> None:
        super().__init__()
        self._task = task
        self.model = model

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        return dict(self._task.predictions(self._task.forward(self.model, batch)))


def _described(name: str, tensor: Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"name": name, "dtype": dtype, "shape": ["rows", *tensor.shape[1:]]}
