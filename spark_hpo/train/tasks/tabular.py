"""TabularTask: a multilayer perceptron with embeddings for categories."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from spark_hpo.data.schema import LENGTH_SUFFIX, ColumnKind, TableSchema
from spark_hpo.train.task import Batch, LabelledTask


class TabularTask(LabelledTask):
    """Classification or regression on columns of any kind. `task: tabular` in a study file.

    Categories become embeddings. Arrays are flattened. A sequence of numbers is flattened together with its
    length; a sequence of categories becomes the mean of its elements' embeddings. The rate follows a cosine
    schedule.

    Parameters, with their defaults:
        learning_rate: 1e-3, of AdamW.
        weight_decay: 0.01, of AdamW.
        hidden_units: 128, per hidden layer.
        hidden_layers: 2.
        dropout: 0.0, after each hidden layer.
        embedding_units: 16, the largest width of an embedding; a column of n codes uses at most (n + 1) // 2.
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
        arrays = schema.of_kind(ColumnKind.ARRAY, ColumnKind.BINARY)
        self._arrays = [feature.name for feature in arrays]
        sequences = schema.of_kind(ColumnKind.SEQUENCE)
        self._lists = {f.name: f.shape[0] for f in sequences if not f.vocabulary}
        bags = [f for f in sequences if f.vocabulary]
        self._bags = [feature.name for feature in bags]
        categorical = schema.of_kind(ColumnKind.CATEGORICAL)
        self._categorical = [feature.name for feature in categorical]
        # At most half of the codes: a column of two values does not need 16 numbers.
        widths = [min(embedding_units, (feature.num_codes + 1) // 2) for feature in categorical]
        self.embeddings = nn.ModuleList(
            nn.Embedding(feature.num_codes, width) for feature, width in zip(categorical, widths, strict=True)
        )
        bag_widths = [min(embedding_units, (feature.num_codes + 1) // 2) for feature in bags]
        self.bags = nn.ModuleList(
            nn.Embedding(feature.num_codes, width) for feature, width in zip(bags, bag_widths, strict=True)
        )
        width = len(self._numeric) + sum(widths) + sum(torch.Size(a.shape).numel() for a in arrays)
        width += sum(longest + 1 for longest in self._lists.values()) + sum(bag_widths)
        layers: list[nn.Module] = []
        for _ in range(hidden_layers):
            layers += [nn.Linear(width, hidden_units), nn.ReLU(), nn.Dropout(dropout)]
            width = hidden_units
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_outputs))

    def forward(self, batch: Batch) -> Tensor:
        """Return [rows, outputs]."""
        parts = [embed(batch[name]) for embed, name in zip(self.embeddings, self._categorical, strict=True)]
        parts += [batch[name].flatten(start_dim=1) for name in self._arrays]
        for name, longest in self._lists.items():
            parts += [batch[name], batch[name + LENGTH_SUFFIX].float().unsqueeze(1) / longest]
        for embed, name in zip(self.bags, self._bags, strict=True):
            parts.append(_mean_of_elements(embed(batch[name]), batch[name + LENGTH_SUFFIX]))
        if self._numeric:
            parts.append(torch.stack([batch[name] for name in self._numeric], dim=1))
        outputs: Tensor = self.layers(torch.cat(parts, dim=1))
        return outputs


def _mean_of_elements(embedded: Tensor, lengths: Tensor) -> Tensor:
    """Return the means, [rows, units], of [rows, longest, units]; zeros for an empty sequence."""
    is_element = torch.arange(embedded.shape[1], device=embedded.device) < lengths.unsqueeze(1)
    total = (embedded * is_element.unsqueeze(2)).sum(dim=1)
    return total / lengths.clamp(min=1).unsqueeze(1)
