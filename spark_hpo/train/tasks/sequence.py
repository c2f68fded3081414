"""SequenceTask: a recurrent network or a small transformer for columns of lists."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from spark_hpo.data.schema import LENGTH_SUFFIX, ColumnKind, Feature, TableSchema
from spark_hpo.errors import DataError
from spark_hpo.train.task import Batch, LabelledTask
from spark_hpo.train.tasks.other_columns import OtherColumns, embeddings_of
from spark_hpo.train.tasks.sequence_layers import build_encoder, is_element, longest_in_batch


class SequenceTask(LabelledTask):
    """Classification or regression on columns of lists of any length. `task: sequence` in a study file.

    The elements are numbers, or tokens: texts, or integers whose column is in `data.categorical`. If all
    lists are of one length, the table has an array, which is used likewise where the table has no other
    lists. Lists in several columns are read step by step together if their longest lists are equally long,
    such as the axes of a sensor; others have encoders of their own. Numbers, categories and arrays beside the
    lists are used, too. The rate follows a cosine schedule.

    Parameters, with their defaults:
        model: gru, or transformer.
        learning_rate: 1e-3, of AdamW.
        weight_decay: 0.01, of AdamW.
        units: 64, of the encoding of a sequence; for a transformer rounded up to a multiple of `heads`.
        layers: 1, of the encoder.
        heads: 4, of the attention of a transformer.
        dropout: 0.0, within the encoder and before the last layers.
        embedding_units: 16, the largest width of an embedding; a column of n codes uses at most (n + 1) // 2.

    Raises:
        DataError: the table has no column of lists.
    """

    def build_model(self) -> nn.Module:
        return _SequenceModel(
            self.schema,
            num_outputs=self.num_outputs,
            model=str(self.params.get("model", "gru")),
            units=int(self.params.get("units", 64)),
            layers=int(self.params.get("layers", 1)),
            heads=int(self.params.get("heads", 4)),
            dropout=float(self.params.get("dropout", 0.0)),
            embedding_units=int(self.params.get("embedding_units", 16)),
        )

    def build_schedule(self, optimizer: Optimizer, *, total_steps: int) -> LRScheduler | None:
        return CosineAnnealingLR(optimizer, T_max=total_steps)


def sequence_columns(schema: TableSchema) -> tuple[Feature, ...]:
    """Return the columns of lists or, if there are none, the arrays of one dimension.

    Raises:
        DataError: there are neither.
    """
    arrays = tuple(f for f in schema.of_kind(ColumnKind.ARRAY, ColumnKind.BINARY) if len(f.shape) == 1)
    if not (found := schema.of_kind(ColumnKind.SEQUENCE) or arrays):
        kinds = ", ".join(f"{f.name} ({f.kind})" for f in schema.features)
        raise DataError(
            f"SequenceTask needs a column of lists, but the table has {kinds}. For these, use TabularTask"
        )
    return found


class _SequenceModel(nn.Module):
    def __init__(
        self,
        schema: TableSchema,
        *,
        num_outputs: int,
        model: str,
        units: int,
        layers: int,
        heads: int,
        dropout: float,
        embedding_units: int,
    ) -> None:
        super().__init__()
        by_length = sorted(sequence_columns(schema), key=lambda feature: feature.shape[0])
        groups = [tuple(group) for _, group in groupby(by_length, key=lambda feature: feature.shape[0])]
        steps = [_Steps(group, embedding_units) for group in groups]
        encoders = [
            build_encoder(model, each.width, units=units, layers=layers, heads=heads, dropout=dropout)
            for each in steps
        ]
        self.steps, self.encoders = nn.ModuleList(steps), nn.ModuleList(encoders)
        self.beside = OtherColumns(schema, embedding_units, without=by_length)
        width = sum(encoder.units for encoder in encoders) + self.beside.width
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(width, units),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(units, num_outputs),
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return [rows, outputs]."""
        encoded = [encode(*steps(batch)) for steps, encode in zip(self.steps, self.encoders, strict=True)]
        outputs: Tensor = self.layers(torch.cat([*encoded, *self.beside(batch)], dim=1))
        return outputs


class _Steps(nn.Module):
    """Joins columns of lists: a step has the number or the embedding of each column's element."""

    def __init__(self, columns: Sequence[Feature], embedding_units: int) -> None:
        super().__init__()
        self._columns = columns
        embeddings = embeddings_of([column for column in columns if column.vocabulary], embedding_units)
        self.embeddings = nn.ModuleList(embeddings)
        numbers = sum(not column.vocabulary for column in columns)
        self.width = numbers + sum(embedding.embedding_dim for embedding in embeddings)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the steps, [rows, longest, width] with zeros after the elements, and the lengths, [rows]."""
        lengths = [self._lengths(batch, column) for column in self._columns]
        joined = torch.stack(lengths).amax(dim=0)
        longest = longest_in_batch(joined, self._columns[0].shape[0])
        embeddings = iter(self.embeddings)
        parts = []
        for column, own in zip(self._columns, lengths, strict=True):
            elements = batch[column.name][:, :longest]
            if column.vocabulary:
                values = next(embeddings)(elements)
            else:
                values = ((elements - column.mean) / column.deviation).unsqueeze(2)
            parts.append(values * is_element(own, elements.shape[1]).unsqueeze(2))
        return torch.cat(parts, dim=2), joined

    def _lengths(self, batch: Batch, column: Feature) -> Tensor:
        if column.kind is ColumnKind.SEQUENCE:
            return batch[column.name + LENGTH_SUFFIX]
        values = batch[column.name]
        return torch.full_like(values[:, 0], values.shape[1], dtype=torch.int64)
