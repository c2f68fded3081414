"""Hyperparameter tuning of PyTorch models on big Parquet tables, on the Spark cluster you already have.

The public API is `__all__` and the modules that docs/api.md lists. A name is imported when it is first used:
importing the package starts nothing and loads neither pyspark nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; a test compares it with _MODULES
    from spark_hpo.config import StudyConfig as StudyConfig
    from spark_hpo.config import build_config as build_config
    from spark_hpo.config import load_config as load_config
    from spark_hpo.data.plan.manifest import Manifest as Manifest
    from spark_hpo.data.plan.shards import Segment as Segment
    from spark_hpo.data.readers import Reader as Reader
    from spark_hpo.data.readers import open_reader as open_reader
    from spark_hpo.data.schema import TableSchema as TableSchema
    from spark_hpo.driver.result import Result as Result
    from spark_hpo.driver.run import run_study as run_study
    from spark_hpo.driver.sync import sync_study as sync_study
    from spark_hpo.errors import TrialPruned as TrialPruned
    from spark_hpo.porting.fmin import fmin as fmin
    from spark_hpo.porting.optimize import optimize as optimize
    from spark_hpo.porting.spark_trials import SparkTrials as SparkTrials
    from spark_hpo.report.serve.server import serve as serve
    from spark_hpo.report.view import StudyView as StudyView
    from spark_hpo.report.view import load_study as load_study
    from spark_hpo.search.explorer import Explorer as Explorer
    from spark_hpo.search.sampler import Sampler as Sampler
    from spark_hpo.search.scheduler import Scheduler as Scheduler
    from spark_hpo.search.scheduler import Slot as Slot
    from spark_hpo.search.space import Space as Space
    from spark_hpo.study.callback import Callback as Callback
    from spark_hpo.train.context import TrainContext as TrainContext
    from spark_hpo.train.task import LabelledTask as LabelledTask
    from spark_hpo.train.task import TrainTask as TrainTask
    from spark_hpo.trial import Params as Params
    from spark_hpo.tuning import tune as tune

__version__ = "0.1.0"

_MODULES = {
    # Studies
    "Result": "driver.result",
    "StudyConfig": "config",
    "StudyView": "report.view",
    "build_config": "config",
    "load_config": "config",
    "load_study": "report.view",
    "run_study": "driver.run",
    "serve": "report.serve.server",
    "sync_study": "driver.sync",
    "tune": "tuning",
    # Tasks, training functions and callbacks
    "Callback": "study.callback",
    "LabelledTask": "train.task",
    "TrainContext": "train.context",
    "TrainTask": "train.task",
    "TrialPruned": "errors",
    # Programs written for hyperopt or Optuna
    "SparkTrials": "porting.spark_trials",
    "fmin": "porting.fmin",
    "optimize": "porting.optimize",
    # Plugins
    "Explorer": "search.explorer",
    "Manifest": "data.plan.manifest",
    "Params": "trial",
    "Reader": "data.readers",
    "Sampler": "search.sampler",
    "Scheduler": "search.scheduler",
    "Segment": "data.plan.shards",
    "Slot": "search.scheduler",
    "Space": "search.space",
    "TableSchema": "data.schema",
    "open_reader": "data.readers",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
