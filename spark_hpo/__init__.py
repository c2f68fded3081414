"""Hyperparameter tuning of PyTorch models on big Parquet tables, on the Spark cluster you already have.

The public names are imported when they are first used: importing the package starts nothing and loads
neither pyspark nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark_hpo.config import StudyConfig, build_config, load_config
    from spark_hpo.driver.result import Result
    from spark_hpo.driver.run import run_study
    from spark_hpo.driver.sync import sync_study
    from spark_hpo.errors import TrialPruned
    from spark_hpo.porting.fmin import fmin
    from spark_hpo.porting.optimize import optimize
    from spark_hpo.porting.spark_trials import SparkTrials
    from spark_hpo.report.view import StudyView, load_study
    from spark_hpo.study.callback import Callback
    from spark_hpo.train.context import TrainContext
    from spark_hpo.train.task import LabelledTask, TrainTask
    from spark_hpo.tuning import tune

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "LabelledTask",
    "Result",
    "SparkTrials",
    "StudyConfig",
    "StudyView",
    "TrainContext",
    "TrainTask",
    "TrialPruned",
    "build_config",
    "fmin",
    "load_config",
    "load_study",
    "optimize",
    "run_study",
    "sync_study",
    "tune",
]

_HOMES = {
    "Callback": "study.callback",
    "LabelledTask": "train.task",
    "Result": "driver.result",
    "SparkTrials": "porting.spark_trials",
    "StudyConfig": "config",
    "StudyView": "report.view",
    "TrainContext": "train.context",
    "TrainTask": "train.task",
    "TrialPruned": "errors",
    "build_config": "config",
    "fmin": "porting.fmin",
    "load_config": "config",
    "load_study": "report.view",
    "optimize": "porting.optimize",
    "run_study": "driver.run",
    "sync_study": "driver.sync",
    "tune": "tuning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
