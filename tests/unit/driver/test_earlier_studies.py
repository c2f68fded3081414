"""Studies to learn from, `search.transfer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.config import StudyConfig
from spark_hpo.driver.earlier_studies import keep_earlier_trials, read_earlier_trials
from spark_hpo.errors import ConfigError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from tests.support.tables import clusters_study
from tests.support.written_studies import StudyWriter

ACCURACY = Objective(metric="accuracy", mode=Mode.MAX)


def config(folder: Path, *studies: Path | str) -> StudyConfig:
    search = {"max_resource": 3, "transfer": {"studies": list(map(str, studies))}}
    return clusters_study(folder, search=search)


def earlier_study(folder: Path, objective: Objective = ACCURACY, **assignment: Any) -> Path:
    pen = StudyWriter(objective, storage=Storage(folder))
    for trial, value in enumerate((0.5, 0.9)):
        pen.start(trial, **assignment).end(trial, value=value)
    pen.close()
    return folder


def read(config: StudyConfig) -> list[list[float]]:
    storage = Storage(config.study_dir)
    return [[trial.loss for trial in study] for study in read_earlier_trials(config, storage)]


def test_earlier_study_is_read_by_its_own_objective(tmp_path: Path) -> None:
    penalized = Objective(metric="accuracy", mode=Mode.MAX, penalties=(("size", 0.1),))
    pen = StudyWriter(penalized, storage=Storage(tmp_path / "march"))
    pen.start(0).end(0, metrics={"accuracy": 0.5, "size": 2.0}).close()
    plain = earlier_study(tmp_path / "april")
    assert read(config(tmp_path, tmp_path / "march", plain)) == [[-0.3], [-0.5, -0.9]]


@pytest.mark.parametrize(
    "objective", [Objective(metric="f1", mode=Mode.MAX), Objective(metric="accuracy", mode=Mode.MIN)]
)
def test_earlier_study_with_another_metric_or_mode_is_refused(tmp_path: Path, objective: Objective) -> None:
    folder = earlier_study(tmp_path / "march", objective)
    with pytest.raises(ConfigError) as caught:
        read(config(tmp_path, folder))
    assert (caught.value.key, caught.value.value) == ("search.transfer.studies", str(folder))


def test_earlier_study_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(config(tmp_path, tmp_path / "mrach"))
    assert (caught.value.key, caught.value.value) == ("search.transfer.studies", str(tmp_path / "mrach"))


@pytest.mark.parametrize("file", ["study.json", "journal/000001.jsonl"])
def test_earlier_study_that_is_damaged_is_refused(tmp_path: Path, file: str) -> None:
    folder = earlier_study(tmp_path / "march")
    (folder / file).write_text('{"broken": 1}\n{"broken": 1}\n')
    with pytest.raises(ConfigError) as caught:
        read(config(tmp_path, folder))
    assert (caught.value.key, caught.value.value) == ("search.transfer.studies", str(folder))


def test_earlier_trials_are_kept_until_the_setting_changes(tmp_path: Path) -> None:
    march = earlier_study(tmp_path / "march")
    study = config(tmp_path, march)
    storage = Storage(study.study_dir)
    keep_earlier_trials(study, storage, read_earlier_trials(study, storage))
    pen = StudyWriter(ACCURACY, storage=Storage(march)).start(2).end(2, value=0.1)
    pen.close()
    assert read(study) == [[-0.5, -0.9]]
    april = earlier_study(tmp_path / "april")
    assert read(config(tmp_path, april, march)) == [[-0.5, -0.9], [-0.5, -0.9, -0.1]]


def test_earlier_trials_of_older_versions_are_kept_for_the_studies_of_the_definition(tmp_path: Path) -> None:
    study = config(tmp_path, "gone")
    storage = Storage(study.study_dir)
    storage.write("transfer.json", json.dumps([[{"params": {}, "resource": 1, "loss": "inf"}]]).encode())
    StudyWriter(ACCURACY, storage=storage, search={"max_resource": 3, "transfer": {"studies": ["gone"]}})
    record = json.loads(storage.read("study.json") or b"")
    record["config"]["search"]["transfer"] = {"studies": ["gone"]}
    storage.write("study.json", json.dumps(record).encode())
    assert read(study) == [[float("inf")]]
    march = earlier_study(tmp_path / "march")
    assert read(config(tmp_path, march)) == [[-0.5, -0.9]]
