"""The settings of a study file, and the messages about them."""

from spark_hpo.config.data import DataConfig
from spark_hpo.config.model import (
    ObjectiveConfig,
    ResourcesConfig,
    SearchConfig,
    StoppingConfig,
    StudyConfig,
    build_config,
    defaults,
    load_config,
)
from spark_hpo.config.split import SplitConfig

__all__ = [
    "DataConfig",
    "ObjectiveConfig",
    "ResourcesConfig",
    "SearchConfig",
    "SplitConfig",
    "StoppingConfig",
    "StudyConfig",
    "build_config",
    "defaults",
    "load_config",
]
