"""ForecastTask: the next values of series, as a correction of the seasonal-naive forecast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from spark_hpo.data.schema import ColumnKind, Feature, TableSchema, Windows
from spark_hpo.errors import DataError
from spark_hpo.train.built_in import FORECAST_METRICS, check_label
from spark_hpo.train.task import Batch, TrainTask
from spark_hpo.train.tasks.other_columns import OtherColumns
from spark_hpo.train.tasks.sequence_layers import build_encoder
from spark_hpo.trial import Params

_LEAST_SCALE = 0.01  # of a window, as a share of the label's standard deviation


class ForecastTask(TrainTask):
    """Forecasts the next k values of series. `task: forecast` in a study file.

    A row is a window: the history of the values, the next k values as a list, which is the label, and other
    columns. `data.windows` forms windows from a table with a row per series and step. A network corrects the
    seasonal-naive forecast, which repeats the last season of the history. The rate follows a cosine schedule.

    A window's scale is the mean absolute error of the seasonal-naive forecast, one season ahead, within its
    history (Hyndman and Koehler 2006), and at least a hundredth of the label's standard deviation. The loss
    is the mean absolute error divided by the scale.

    Parameters, with their defaults:
        model: mlp, gru or transformer.
        learning_rate: 1e-3, of AdamW.
        weight_decay: 0.01, of AdamW.
        units: 64, of a hidden layer and of the encoding of the history.
        layers: 1, hidden layers of an mlp, or layers of the encoder.
        heads: 4, of the attention of a transformer.
        dropout: 0.0, after each hidden layer and within the encoder.
        embedding_units: 16, the largest width of an embedding; a column of n codes uses at most (n + 1) // 2.
        season: of `data.windows`, else 1. Steps after which values repeat.

    Raises:
        DataError: the label is not a list of numbers, or the history of its values is not known.
    """

    def __init__(self, params: Params, schema: TableSchema) -> None:
        super().__init__(params, schema)
        self._windows = windows_of(schema, season=params.get("season"))

    def build_model(self) -> nn.Module:
        return _ForecastModel(
            self.schema,
            self._windows,
            model=str(self.params.get("model", "mlp")),
            units=int(self.params.get("units", 64)),
            layers=int(self.params.get("layers", 1)),
            heads=int(self.params.get("heads", 4)),
            dropout=float(self.params.get("dropout", 0.0)),
            embedding_units=int(self.params.get("embedding_units", 16)),
        )

    def build_schedule(self, optimizer: Optimizer, *, total_steps: int) -> LRScheduler | None:
        return CosineAnnealingLR(optimizer, T_max=total_steps)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean of `scaled_error`."""
        return self._errors(outputs, batch)[1].mean()

    def metrics(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Return errors, each [rows], as means over the steps of the forecast.

        `absolute_error` is in the label's units, `scaled_error` is divided by the window's scale. Both are
        also given for the seasonal-naive forecast: `naive_absolute_error`, `naive_scaled_error`.
        """
        absolute, scaled = self._errors(outputs, batch)
        naive = seasonal_naive(batch[self._windows.value], self._windows)
        naive_absolute, naive_scaled = self._errors(naive, batch)
        return {
            "absolute_error": absolute,
            "scaled_error": scaled,
            "naive_absolute_error": naive_absolute,
            "naive_scaled_error": naive_scaled,
        }

    @classmethod
    def metric_names(cls, schema: TableSchema) -> tuple[str, ...] | None:
        """Return the names of all metrics."""
        return FORECAST_METRICS if cls.metrics is ForecastTask.metrics else None

    def _errors(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean absolute errors of the rows, [rows], in the label's units and scaled."""
        error = (outputs.float() - batch[self.schema.label.name]).abs().mean(dim=1)
        history, season = batch[self._windows.value], self._windows.season
        scale = (history[:, season:] - history[:, :-season]).abs().mean(dim=1)
        return error, error / scale.clamp(min=_LEAST_SCALE * self.schema.label.deviation)


def windows_of(schema: TableSchema, *, season: object = None) -> Windows:
    """Return the windows that the rows of a table are.

    In a table that the user has formed, the history is the only array that is as its name or shape allows.

    Args:
        season: replaces that of the table.

    Raises:
        DataError: the table has no windows, or they are shorter than a season.
    """
    check_label("forecast", schema)
    windows = schema.windows
    if windows is None:
        arrays = [f for f in schema.of_kind(ColumnKind.ARRAY) if len(f.shape) == 1]
        if len(arrays) != 1:
            found = ", ".join(f.name for f in arrays) or "none"
            raise DataError(
                "ForecastTask needs one column with the history of the values, as lists of one length, but "
                f"the table has {found}. Set data.windows to form windows from the steps of series"
            )
        windows = Windows(value=arrays[0].name, history=arrays[0].shape[0], horizon=schema.label.shape[0])
    chosen = windows.season if season is None else int(str(season))
    if not 1 <= chosen < windows.history:
        raise DataError(
            f"the season ({chosen}) must be at least 1 and below the history ({windows.history} steps)"
        )
    return replace(windows, season=chosen)


def seasonal_naive(history: Tensor, windows: Windows) -> Tensor:
    """Return the values of the last season, repeated: [rows, horizon] of [rows, history]."""
    step = torch.arange(windows.horizon, device=history.device) % windows.season
    return history[:, history.shape[1] - windows.season + step]


class _ForecastModel(nn.Module):
    """Adds to the seasonal-naive forecast a linear map of the history and the output of a network.

    Both are zero at first, so training starts from the seasonal-naive forecast. Values are standardised by
    their mean and deviation within the window, so that series of any size share the weights.
    """

    def __init__(
        self,
        schema: TableSchema,
        windows: Windows,
        *,
        model: str,
        units: int,
        layers: int,
        heads: int,
        dropout: float,
        embedding_units: int,
    ) -> None:
        super().__init__()
        self._windows = windows
        self._least_scale = _LEAST_SCALE * schema.label.deviation
        arrays = [f for f in schema.of_kind(ColumnKind.ARRAY) if f.name != windows.value]
        self._past = [f for f in arrays if f.shape == (windows.history,)]
        self._known = [f for f in arrays if f.shape == (windows.history + windows.horizon,)]
        series = [f for f in schema.of_kind(ColumnKind.ARRAY) if f not in arrays]
        self.beside = OtherColumns(schema, embedding_units, without=[*series, *self._past, *self._known])
        channels = 1 + len(self._past) + len(self._known)
        self.encoder = (
            None
            if model == "mlp"
            else build_encoder(
                model, channels, units=units, layers=layers, heads=heads, dropout=dropout, task="forecast"
            )
        )
        encoded = channels * windows.history if self.encoder is None else self.encoder.units
        width = encoded + len(self._known) * windows.horizon + self.beside.width + 2
        hidden: list[nn.Module] = []
        for _ in range(layers if self.encoder is None else 1):
            hidden += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(dropout)]
            width = units
        self.hidden = nn.Sequential(*hidden)
        self.last = nn.Linear(width, windows.horizon)
        self.linear = nn.Linear(windows.history, windows.horizon, bias=False)
        for layer in (self.last, self.linear):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, batch: Batch) -> Tensor:
        """Return the forecasts, [rows, horizon], in the label's units."""
        history = batch[self._windows.value]
        level = history.mean(dim=1, keepdim=True)
        scale = history.std(dim=1, keepdim=True, correction=0).clamp(min=self._least_scale)
        values = (history - level) / scale
        known = [_standardised(batch, feature) for feature in self._known]
        past = [_standardised(batch, feature) for feature in self._past]
        steps = torch.stack([values, *past, *(each[:, : self._windows.history] for each in known)], dim=2)
        if self.encoder is None:
            encoded = steps.flatten(start_dim=1)
        else:
            lengths = torch.full_like(steps[:, 0, 0], self._windows.history, dtype=torch.int64)
            encoded = self.encoder(steps, lengths)
        ahead = [each[:, self._windows.history :] for each in known]
        size = torch.cat([level, scale], dim=1) / self._least_scale
        inputs = [encoded, *ahead, *self.beside(batch), size.abs().log1p() * size.sign()]
        correction = self.linear(values) + self.last(self.hidden(torch.cat(inputs, dim=1)))
        forecast: Tensor = seasonal_naive(history, self._windows) + correction * scale
        return forecast


def _standardised(batch: Batch, feature: Feature) -> Tensor:
    return (batch[feature.name] - feature.mean) / feature.deviation
