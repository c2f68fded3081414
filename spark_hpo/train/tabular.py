"""The task for tables: embeddings for categories, and a multilayer perceptron."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from spark_hpo.data.schema import ColumnKind, TableSchema
from spark_hpo.train.task import Batch, LabelledTask


class TabularTask(LabelledTask):
    """Classification or regression on numeric and categorical columns (and arrays, flattened).

    Parameters: `learning_rate` (1e-3), `weight_decay` (0.01), `hidden_units` (128), `hidden_layers` (2),
    `dropout` (0.0), `embedding_units` (at most 16: the width of a category's embedding).
    """

    def build_model(self) -> nn.Module:
        return _TabularModel(
            self.schema,
            num_outputs=self.num_outputs,
            hidden_units=int(self.params.get("hidden_units", 128)),
            hidden_layers=int(self.params.get("hidden_layers", 2)),
            dropout=float(self.params.get("dropout", 0.0)),
            embedding_units=int(self.params.get("embedding_units", 16)),
        )

    def build_schedule(self, optimizer: Optimizer, *, total_steps: int) -> LRScheduler | None:
        return CosineAnnealingLR(optimizer, T_max=total_steps)


class _TabularModel(nn.Module):
    def __init__(
        self,
        schema: TableSchema,
        *,
        num_outputs: int,
        hidden_units: int,
        hidden_layers: int,
        dropout: float,
        embedding_units: int,
    ) -> None:
        super().__init__()
        self._numeric = [feature.name for feature in schema.of_kind(ColumnKind.NUMERIC)]
        self._arrays = [feature.name for feature in schema.of_kind(ColumnKind.ARRAY)]
        categorical = schema.of_kind(ColumnKind.CATEGORICAL)
        self._categorical = [feature.name for feature in categorical]
        # Half of the codes: a category of two values needs no sixteen numbers.
        widths = [min(embedding_units, (feature.num_codes + 1) // 2) for feature in categorical]
        self.embeddings = nn.ModuleList(
            nn.Embedding(feature.num_codes, width) for feature, width in zip(categorical, widths, strict=True)
        )
        arrays = schema.of_kind(ColumnKind.ARRAY)
        width = len(self._numeric) + sum(widths) + sum(torch.Size(a.shape).numel() for a in arrays)
        layers: list[nn.Module] = []
        for _ in range(hidden_layers):
            layers += [nn.Linear(width, hidden_units), nn.ReLU(), nn.Dropout(dropout)]
            width = hidden_units
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_outputs))

    def forward(self, batch: Batch) -> Tensor:
        """[rows, outputs]"""
        parts = [embed(batch[name]) for embed, name in zip(self.embeddings, self._categorical, strict=True)]
        parts += [batch[name].flatten(start_dim=1) for name in self._arrays]
        if self._numeric:
            parts.append(torch.stack([batch[name] for name in self._numeric], dim=1))
        outputs: Tensor = self.layers(torch.cat(parts, dim=1))
        return outputs
