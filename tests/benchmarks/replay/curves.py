"""Folders of learning curves: measured ones in a table, and a surrogate that answers for any configuration.

A folder holds `benchmark.yaml` (metric, mode, max_resource, and the space where it is known),
`configs.parquet` (config_id and parameters), `curves.parquet` (task, config_id, resource, elapsed_s and
metrics; NaN: diverged), and perhaps `surrogate/` (`model.onnx`, `encoding.json`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from spark_hpo.errors import ConfigError, DataError
from spark_hpo.objective import Mode, Objective
from spark_hpo.search.space import Space
from spark_hpo.trial import Params
from tests.benchmarks.replay.benchmark import NUM_REFERENCE, Benchmark, Reference, Scaled, references_of
from tests.benchmarks.replay.pool import Pool
from tests.support.simulated import Curve

_CACHE = Path(__file__).parents[3] / "build" / "references"
"""The scales of regret of surrogates, which take longer to compute than a search."""

_BATCH = 500  # configurations that the surrogate answers for at once
# Columns of what the surrogate returns.
_OUTPUTS = (
    *("elapsed_s", "val_accuracy", "val_cross_entropy", "val_balanced_accuracy"),
    *("test_cross_entropy", "test_balanced_accuracy"),
)


def open_benchmarks(folder: Path, tasks: Sequence[str] = ()) -> list[Benchmark]:
    """Return the benchmarks of a folder, one for each task; without names, those of all tasks.

    Raises:
        DataError: the folder is not in the format.
        ConfigError: an unknown task, or a surrogate without onnxruntime.
    """
    try:
        description = yaml.safe_load((folder / "benchmark.yaml").read_text(encoding="utf-8"))
        configs = pd.read_parquet(folder / "configs.parquet")
        curves = pd.read_parquet(folder / "curves.parquet")
    except (OSError, ValueError, yaml.YAMLError) as exc:
        raise DataError(f"{folder}: this is no folder of learning curves: {exc}") from exc
    measured = sorted(str(task) for task in curves["task"].unique())
    if (folder / "surrogate").is_dir():
        surrogate = _Surrogate(folder / "surrogate")
        _check_tasks(folder, tasks, surrogate.tasks)
        return [SurrogateBenchmark(task, description, surrogate) for task in tasks or measured]
    _check_tasks(folder, tasks, measured)
    return [
        TableBenchmark(task, description, configs, curves[curves["task"].astype(str) == task])
        for task in tasks or measured
    ]


def _check_tasks(folder: Path, tasks: Sequence[str], known: Sequence[str]) -> None:
    for task in tasks:
        if task not in known:
            raise ConfigError(f"{folder} has no task {task!r}; it has {', '.join(known)}")


class TableBenchmark(Scaled):
    """Measured curves: a finite pool of configurations."""

    def __init__(
        self, task: str, description: Mapping[str, Any], configs: pd.DataFrame, curves: pd.DataFrame
    ) -> None:
        self.task = task
        self.objective = _objective(description)
        self.max_resource = int(description["max_resource"])
        by_id = configs.set_index("config_id").sort_index()
        self.space = Space.from_config(description["space"]) if "space" in description else space_of(by_id)
        metric = self._matrix(curves, self.objective.metric).reindex(by_id.index)
        # A run that has diverged before its first point has no times at all: it costs next to nothing.
        times = self._matrix(curves, "elapsed_s").reindex(by_id.index).ffill(axis=1).fillna(0.0)
        elapsed = np.maximum.accumulate(times.to_numpy(float), axis=1)
        unseen = _unseen_column(description, list(curves.columns))
        losses: Iterable[npt.NDArray[np.float64] | None] = repeat(None)
        if unseen is not None:
            column, sign = unseen
            losses = sign * self._matrix(curves, column).reindex(by_id.index).to_numpy(float)
        self._curves = [
            Curve(metrics={self.objective.metric: values}, elapsed_s=seconds, unseen=loss)
            for values, seconds, loss in zip(metric.to_numpy(float), elapsed, losses, strict=False)
        ]
        self.pool = Pool(self.space, [_params(row) for row in by_id.to_dict("records")])

    def _reference_curves(self) -> list[Curve]:
        return self._curves

    def curve(self, trial_id: int, params: Params) -> Curve:
        """The curve of a configuration of the pool."""
        return self._curves[self.pool.number(params)]

    def _matrix(self, curves: pd.DataFrame, column: str) -> pd.DataFrame:
        matrix = curves.pivot(index="config_id", columns="resource", values=column)
        return matrix.reindex(columns=range(1, self.max_resource + 1))


class SurrogateBenchmark(Scaled):
    """A model of the curves, which answers for any configuration of the space."""

    pool: Pool | None = None

    def __init__(self, task: str, description: Mapping[str, Any], surrogate: _Surrogate) -> None:
        self.task = task
        self.objective = _objective(description)
        self.max_resource = int(description["max_resource"])
        self.space = Space.from_config(description["space"])
        self._names = tuple(description["space"])
        self._unseen = _unseen_column(description, _OUTPUTS)
        self._surrogate = surrogate
        key = json.dumps([surrogate.digest, task, description, NUM_REFERENCE], sort_keys=True)
        self._cache_file = _CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    @cached_property
    def _references(self) -> tuple[Reference, Reference]:
        if self._cache_file.exists():
            seen, unseen = json.loads(self._cache_file.read_text())
            return Reference(**seen), Reference(**unseen)
        both = references_of(self.objective, self._reference_curves())
        self._cache_file.parent.mkdir(parents=True, exist_ok=True)
        whole = self._cache_file.with_suffix(f".{os.getpid()}")  # several processes may write it
        whole.write_text(json.dumps([asdict(one) for one in both]))
        whole.rename(self._cache_file)
        return both

    def _reference_curves(self) -> list[Curve]:
        draws = [self.space.sample(np.random.default_rng(i)) for i in range(NUM_REFERENCE)]
        points = [self._point(params) for params in draws]
        curves: list[Curve] = []
        for i in range(0, len(points), _BATCH):
            curves += self._ask(points[i : i + _BATCH])
        return curves

    def curve(self, trial_id: int, params: Params) -> Curve:
        """The curve of any configuration, at all epochs at once."""
        (curve,) = self._ask([self._point(params)])
        return curve

    def _point(self, params: Params) -> tuple[float, ...]:
        return tuple(float(params[name]) for name in self._names)

    def _ask(self, points: Sequence[tuple[float, ...]]) -> list[Curve]:
        outputs = self._surrogate.curves(self.task, np.asarray(points), self.max_resource)
        # Times are not quite monotone.
        seconds = np.maximum.accumulate(outputs[:, :, 0], axis=1)
        values = outputs[:, :, _OUTPUTS.index(self.objective.metric)]
        losses: Iterable[npt.NDArray[np.float64] | None] = repeat(None)
        if self._unseen is not None:
            column, sign = self._unseen
            losses = sign * outputs[:, :, _OUTPUTS.index(column)]
        return [
            Curve(metrics={self.objective.metric: value}, elapsed_s=second, unseen=loss)
            for value, second, loss in zip(values, seconds, losses, strict=False)
        ]


class _Surrogate:
    """The model in a folder `surrogate/`, with the codes of its tasks."""

    def __init__(self, folder: Path) -> None:
        try:
            import onnxruntime
        except ImportError as exc:
            raise ConfigError(
                f"{folder}: a surrogate needs onnxruntime: pip install 'spark_hpo[replay]'"
            ) from exc
        encoding = json.loads((folder / "encoding.json").read_text(encoding="utf-8"))
        (self._codes,) = encoding.values()
        model = folder / "model.onnx"
        self.digest = hashlib.sha256(model.read_bytes()).hexdigest()
        options = onnxruntime.SessionOptions()
        # One thread: the rows are few, and several searches may be replayed side by side.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    @property
    def tasks(self) -> list[str]:
        return sorted(task for task in self._codes if not task.startswith("#"))

    def curves(self, task: str, points: npt.NDArray[np.float64], epochs: int) -> npt.NDArray[np.float64]:
        """Outputs for configurations [n, parameters] at every epoch: [n, epochs, 6]."""
        rows = np.repeat(points, epochs, axis=0)
        epoch = np.tile(np.arange(1, epochs + 1), len(points))
        continuous = np.column_stack([epoch, rows]).astype(np.float32)
        codes = np.full((len(rows), 1), self._codes[task], np.int32)
        (outputs,) = self._session.run(None, {"x_cat": codes, "x_cont": continuous})
        return np.asarray(outputs, float).reshape(len(points), epochs, -1)


def space_of(configs: pd.DataFrame) -> Space:
    """A space around configurations that were drawn from one that is not written down.

    A parameter is on a logarithmic scale when its median lies nearer, on that scale, to the middle of the
    range than on the linear one.
    """
    entries: dict[str, Any] = {}
    for name, column in configs.items():
        low, high, median = column.min().item(), column.max().item(), float(column.median())
        if low == high:
            entries[str(name)] = low
            continue
        off_linear = abs((median - low) / (high - low) - 0.5)
        is_log = low > 0 and abs(math.log(median / low) / math.log(high / low) - 0.5) < off_linear
        kinds = ("int", "logint") if isinstance(low, int) else ("uniform", "loguniform")
        entries[str(name)] = {"type": kinds[is_log], "low": low, "high": high}
    return Space.from_config(entries)


def _unseen_column(description: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, float] | None:
    """The column with the test value that goes with the metric, and the sign that makes it a loss."""
    column = "test_" + description["metric"].removeprefix("val_")
    alternative = column.replace("test_", "test_balanced_")
    found = next((name for name in (column, alternative) if name in columns), None)
    return None if found is None else (found, -1.0 if description["mode"] == "max" else 1.0)


def _objective(description: Mapping[str, Any]) -> Objective:
    return Objective(metric=description["metric"], mode=Mode(description["mode"]))


def _params(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row as plain JSON numbers."""
    return {str(name): value.item() if hasattr(value, "item") else value for name, value in row.items()}
