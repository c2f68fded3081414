"""A whole study to report on, made on a virtual clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.storage import Storage
from tests.support.simulated import Disturbances
from tests.support.virtual_studies import TODAY, Killed, write_study

DRIVER = {
    "versions": {"python": "3.11.9", "spark_hpo": "0.1.0"},
    "git_commit": "0123abc",
    "command": "spark-submit jobs/tune.py --config study.yaml",
}


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Of a study with everything: two drivers, lost attempts, failures, a configuration of today."""
    folder: Path = tmp_path_factory.mktemp("reported") / "study"
    common: dict[str, Any] = {
        "trials": 40,
        "driver": DRIVER,
        "disturbances": Disturbances(loss_share=0.06, failure_share=0.06, launch_s=2.0, straggler_share=0.1),
        "search": {"sampler": "tpe", "scheduler": "hyperband", "max_resource": 27, "enqueue": [TODAY]},
        "stopping": {"price_per_slot_hour": 2.5, "cost": 1e6},
    }
    write_study(folder, stop_after=(25, Killed), **common)
    return write_study(folder, begin=4000.0, **common)


@pytest.fixture(scope="session")
def record(storage: Storage) -> StudyRecord:
    return StudyRecord.read(storage)
