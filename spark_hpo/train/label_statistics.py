"""Counts over the label of a split. Only the columns of label and weight are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from spark_hpo.data.loader import Batch, Loader
from spark_hpo.data.table import Table
from spark_hpo.trial import Split

_BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStatistics:
    """The rows of a split, by class."""

    rows: int
    weights: Mapping[str, tuple[float, ...]]  # by label: sum over the rows of each class, or their number
    total_weight: float
    lowest_weight: float


def label_statistics(table: Table, split: Split) -> LabelStatistics:
    """Read the label of a split, and the weights of its rows.

    Raises:
        DataError: the split cannot be read.
    """
    schema = table.schema
    by_class = {label.name: torch.zeros(len(label.classes), dtype=torch.float64) for label in schema.labels}
    rows, total, lowest = 0, 0.0, 1.0
    for batch in label_batches(table, split):
        weights = torch.ones(len(batch[schema.label.name]), dtype=torch.float64)
        if schema.weight is not None:
            weights = schema.weight.weights(batch[schema.weight.name].double())
        for name, sums in by_class.items():
            if len(sums):
                sums += torch.bincount(batch[name], weights=weights, minlength=len(sums))
        rows, total, lowest = (
            rows + len(weights),
            total + float(weights.sum()),
            min(lowest, float(weights.min())),
        )
    return LabelStatistics(
        rows=rows,
        weights={name: tuple(sums.tolist()) for name, sums in by_class.items()},
        total_weight=total,
        lowest_weight=lowest,
    )


def label_batches(table: Table, split: Split) -> Iterator[Batch]:
    """Yield the label of all rows of a split, and the weights of the rows."""
    yield from batches_of(replace(table, schema=replace(table.schema, features=())), split)


def batches_of(table: Table, split: Split) -> Iterator[Batch]:
    """Yield all rows of a split."""
    loader = Loader(
        table,
        split,
        rank=0,
        world_size=1,
        batch_size=_BATCH_ROWS,
        seed=0,
        shuffle_window=None,
    )
    yield from next(loader.passes(0, 1))
