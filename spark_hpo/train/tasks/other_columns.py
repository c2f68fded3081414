"""The columns beside those that a task is for: numbers, arrays and categories."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from spark_hpo.data.schema import ColumnKind, Feature, TableSchema
from spark_hpo.train.task import Batch


class OtherColumns(nn.Module):
    """Prepares numbers, arrays and embedded categories as inputs of a layer of `width` units."""

    def __init__(
        self, schema: TableSchema, embedding_units: int, *, without: Collection[Feature] = ()
    ) -> None:
        """
        Args:
            embedding_units: the largest width of an embedding.
            without: columns that the task handles itself.
        """
        super().__init__()
        self._numbers = [feature.name for feature in schema.of_kind(ColumnKind.NUMERIC)]
        arrays = [f for f in schema.of_kind(ColumnKind.ARRAY, ColumnKind.BINARY) if f not in without]
        self._arrays = [feature.name for feature in arrays]
        categories = schema.of_kind(ColumnKind.CATEGORICAL)
        self._categories = [feature.name for feature in categories]
        embeddings = embeddings_of(categories, embedding_units)
        self.embeddings = nn.ModuleList(embeddings)
        self.width = len(self._numbers) + sum(torch.Size(array.shape).numel() for array in arrays)
        self.width += sum(embedding.embedding_dim for embedding in embeddings)

    def forward(self, batch: Batch) -> list[Tensor]:
        """Return tensors [rows, any], `width` columns together."""
        parts = [embed(batch[name]) for embed, name in zip(self.embeddings, self._categories, strict=True)]
        parts += [batch[name].flatten(start_dim=1) for name in self._arrays]
        return parts + [batch[name].unsqueeze(1) for name in self._numbers]


def embeddings_of(columns: Sequence[Feature], largest: int) -> list[nn.Embedding]:
    """Build an embedding per column, at most half as wide as the column has codes."""
    return [nn.Embedding(f.num_codes, min(largest, (f.num_codes + 1) // 2)) for f in columns]
