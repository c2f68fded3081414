"""The networks of TabularTask: a multilayer perceptron, and a residual network with embeddings of numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spark_hpo.data.schema import LENGTH_SUFFIX, ColumnKind, TableSchema
from spark_hpo.train.task import Batch
from spark_hpo.train.tasks.other_columns import embeddings_of
from spark_hpo.train.tasks.sequence_layers import mean_of_elements

_FREQUENCIES = 16  # per numeric column


class ColumnModel(nn.Module):
    """The part of a network that turns the columns of a batch into one vector per row.

    Attributes:
        num_numbers: the number of numeric columns.
        width: the length of the vector of all other columns.
    """

    def __init__(self, schema: TableSchema, *, embedding_units: int) -> None:
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
        embeddings = embeddings_of(categorical, embedding_units)
        embeddings_of_bags = embeddings_of(bags, embedding_units)
        self.embeddings, self.bags = nn.ModuleList(embeddings), nn.ModuleList(embeddings_of_bags)
        self.num_numbers = len(self._numeric)
        self.width = sum(embedding.embedding_dim for embedding in (*embeddings, *embeddings_of_bags))
        self.width += sum(torch.Size(array.shape).numel() for array in arrays)
        self.width += sum(longest + 1 for longest in self._lists.values())

    def parts(self, batch: Batch) -> list[Tensor]:
        """Return all columns but the numeric ones: tensors [rows, ...] whose widths sum to `width`."""
        parts = [embed(batch[name]) for embed, name in zip(self.embeddings, self._categorical, strict=True)]
        parts += [batch[name].flatten(start_dim=1) for name in self._arrays]
        for name, longest in self._lists.items():
            parts += [batch[name], batch[name + LENGTH_SUFFIX].float().unsqueeze(1) / longest]
        for embed, name in zip(self.bags, self._bags, strict=True):
            parts.append(mean_of_elements(embed(batch[name]), batch[name + LENGTH_SUFFIX]))
        return parts

    def numbers(self, batch: Batch) -> Tensor:
        """Return the numeric columns, of which there must be one: [rows, num_numbers]."""
        return torch.stack([batch[name] for name in self._numeric], dim=1)


class PlainModel(ColumnModel):
    """A multilayer perceptron."""

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
        super().__init__(schema, embedding_units=embedding_units)
        width = self.num_numbers + self.width
        layers: list[nn.Module] = []
        for _ in range(hidden_layers):
            layers += [nn.Linear(width, hidden_units), nn.ReLU(), nn.Dropout(dropout)]
            width = hidden_units
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_outputs))

    def forward(self, batch: Batch) -> Tensor:
        """Return [rows, outputs]."""
        parts = self.parts(batch)
        if self.num_numbers:
            parts.append(self.numbers(batch))
        outputs: Tensor = self.layers(torch.cat(parts, dim=1))
        return outputs


class ResidualModel(ColumnModel):
    """A residual network with periodic embeddings of numbers.

    Layer normalisation instead of the papers' batch normalisation, because it has no running statistics:
    ranks and batch sizes do not matter.
    """

    def __init__(
        self,
        schema: TableSchema,
        *,
        num_outputs: int,
        hidden_units: int,
        hidden_layers: int,
        dropout: float,
        embedding_units: int,
        number_units: int,
        frequency_scale: float,
    ) -> None:
        super().__init__(schema, embedding_units=embedding_units)
        width = self.num_numbers * number_units + self.width
        if self.num_numbers:
            self.periodic = PeriodicEmbedding(self.num_numbers, number_units, scale=frequency_scale)
        self.first = nn.Linear(width, hidden_units)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden_units),
                nn.Linear(hidden_units, 2 * hidden_units),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(2 * hidden_units, hidden_units),
                nn.Dropout(dropout),
            )
            for _ in range(hidden_layers)
        )
        self.last = nn.Sequential(nn.LayerNorm(hidden_units), nn.ReLU(), nn.Linear(hidden_units, num_outputs))

    def forward(self, batch: Batch) -> Tensor:
        """Return [rows, outputs]."""
        parts = self.parts(batch)
        if self.num_numbers:
            parts.append(self.periodic(self.numbers(batch)))
        hidden = self.first(torch.cat(parts, dim=1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        outputs: Tensor = self.last(hidden)
        return outputs


class PeriodicEmbedding(nn.Module):
    """Embeds each of several numbers with learned frequencies, followed by a linear layer of its own.

    Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning", 2022, section 3.3: the
    module called PLR. Unlike piecewise-linear encoding it needs no quantiles of the training rows.

    Args:
        numbers: columns.
        units: the width of one embedding.
        scale: the standard deviation of the initial frequencies.
    """

    def __init__(self, numbers: int, units: int, *, scale: float) -> None:
        super().__init__()
        # Without the tails of the distribution: a very high frequency only adds noise.
        frequencies = nn.init.trunc_normal_(torch.empty(numbers, _FREQUENCIES), a=-3.0, b=3.0)
        self.frequencies = nn.Parameter(scale * frequencies)
        bound = 1 / math.sqrt(2 * _FREQUENCIES)  # as in nn.Linear
        self.weight = nn.Parameter(torch.empty(numbers, 2 * _FREQUENCIES, units).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(numbers, units).uniform_(-bound, bound))

    def forward(self, values: Tensor) -> Tensor:
        """Return [rows, numbers * units] for values [rows, numbers]."""
        angles = 2 * math.pi * self.frequencies * values.unsqueeze(2)
        waves = torch.cat([angles.cos(), angles.sin()], dim=2)
        return torch.einsum("rnf,nfu->rnu", waves, self.weight).add(self.bias).relu().flatten(start_dim=1)
