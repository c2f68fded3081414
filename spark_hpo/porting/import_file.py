"""Imports the file of another tool as a study."""

from __future__ import annotations

from pathlib import Path

from spark_hpo.errors import ConfigError, located
from spark_hpo.porting.determined_experiment import EXPERIMENT
from spark_hpo.porting.imported import Imported, read_mapping
from spark_hpo.porting.wandb_sweep import SWEEP


def import_file(path: str | Path) -> Imported:
    """Read a sweep of Weights & Biases or an experiment of Determined.

    Raises:
        ConfigError: the file cannot be read, or is of neither kind.
    """
    file = Path(path)
    record = read_mapping(file)
    with located(str(file)):
        for format in (SWEEP, EXPERIMENT):
            if format.fits(record):
                return format.study(record, file)
        raise ConfigError(
            "is neither a sweep of W&B, which has method and parameters, nor an experiment of Determined, "
            "which has searcher and hyperparameters"
        )
