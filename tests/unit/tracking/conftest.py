"""Fixtures of the tracking tests: a database, and trackers on it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spark_hpo.objective import Mode, Objective
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.study_runs import StudyCard
from tests.support.mlflow_database import write_database

Open = Callable[..., MlflowTracker]


def card(study_id: str = "study-1") -> StudyCard:
    return StudyCard(study_id=study_id, name="digits", objective=Objective(metric="accuracy", mode=Mode.MAX))


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return write_database(tmp_path)


@pytest.fixture
def open_tracker(uri: str) -> Iterator[Open]:
    opened: list[MlflowTracker] = []

    def open_one(study_id: str = "study-1") -> MlflowTracker:
        opened.append(MlflowTracker(uri, "tests", card(study_id)))
        return opened[-1]

    yield open_one
    for tracker in opened:
        tracker.close(10)
