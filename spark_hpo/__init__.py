"""Hyperparameter tuning of PyTorch models on big Parquet tables, on the Spark cluster you already have.

The public names are imported when they are first used: importing the package starts nothing and loads
neither pyspark nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spark_hpo.app import run_study, sync_study
    from spark_hpo.callback import Callback
    from spark_hpo.config import StudyConfig, build_config, load_config
    from spark_hpo.result import Result
    from spark_hpo.train.context import TrainContext
    from spark_hpo.train.task import LabelledTask, TrainTask

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "LabelledTask",
    "Result",
    "StudyConfig",
    "TrainContext",
    "TrainTask",
    "build_config",
    "load_config",
    "run_study",
    "sync_study",
]

_HOMES = {
    "Callback": "callback",
    "LabelledTask": "train.task",
    "Result": "result",
    "StudyConfig": "config",
    "TrainContext": "train.context",
    "TrainTask": "train.task",
    "build_config": "config",
    "load_config": "config",
    "run_study": "app",
    "sync_study": "app",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
