"""The settings of a study file, and the messages about them."""

from spark_hpo.config.data import DataConfig
from spark_hpo.config.limits import StoppingConfig
from spark_hpo.config.model import StudyConfig, build_config, defaults, load_config
from spark_hpo.config.objective import ObjectiveConfig
from spark_hpo.config.resources import ResourcesConfig
from spark_hpo.config.search import SearchConfig
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
