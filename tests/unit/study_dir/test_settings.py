import json
from pathlib import Path

import pytest

from spark_hpo.config import StudyConfig, build_config
from spark_hpo.errors import ConfigError, JournalError
from spark_hpo.study_dir.driver_settings import Settings, check_owner
from spark_hpo.study_dir.storage import Storage

URI = "https://ann:s3cr3t99@host/mlflow"
RECORD = {
    "name": "digits",
    "study_dir": "studies/digits",
    "task": "tasks.py:Mine",
    "objective": {"metric": "accuracy", "mode": "max"},
    "space": {"rate": {"type": "loguniform", "low": "1e-4", "high": 0.1}},
    "search": {"max_resource": 9, "first": [{"rate": 0.01}]},
    "budget": {"trials": 4, "seconds": 60},
}


def config(**changes: object) -> StudyConfig:
    return build_config({**RECORD, **changes}, place="test")


def kept(study: StudyConfig, folder: Path) -> Settings:
    """Written by one process and read by another."""
    storage = Storage(folder)
    Settings.of(study).write(storage)
    found = Settings.load(storage)
    assert found is not None
    return found


def test_what_was_kept_is_the_same_configuration(tmp_path: Path) -> None:
    study = config(spark={"spark.executor.memory": "4g"})
    found = kept(study, tmp_path).config_with([], study_dir="studies/digits")
    assert found == study


def test_overrides_and_the_place_of_the_directory_count(tmp_path: Path) -> None:
    found = kept(config(), tmp_path).config_with(
        ["budget.seconds=90", "budget.resource=7"], study_dir="moved"
    )
    assert (found.study_dir, found.budget.seconds, found.budget.resource) == ("moved", 90, 7)
    assert found.budget.trials == 4


def test_credentials_are_not_kept_and_are_asked_for(tmp_path: Path) -> None:
    settings = kept(
        config(mlflow={"tracking_uri": URI}, spark={"spark.ssl.keyPassword": "hunter22"}), tmp_path
    )
    for file in tmp_path.iterdir():
        assert "s3cr3t99" not in file.read_text()
        assert "hunter22" not in file.read_text()
    with pytest.raises(ConfigError) as caught:
        settings.config_with([], study_dir="d")
    message = str(caught.value)
    assert "mlflow.tracking_uri" in message
    assert "'spark={spark.ssl.keyPassword: ...}'" in message
    assert "study file" in message
    given = [f"mlflow.tracking_uri={URI}", "spark={spark.ssl.keyPassword: hunter22}"]
    assert settings.config_with(given, study_dir="d").mlflow.tracking_uri == URI


def test_who_needs_no_credentials_is_not_asked(tmp_path: Path) -> None:
    settings = kept(config(mlflow={"tracking_uri": URI}), tmp_path)
    assert settings.config_with([], study_dir="d", needs_credentials=False).name == "digits"


def test_an_older_study_has_none(tmp_path: Path) -> None:
    assert Settings.load(Storage(tmp_path)) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"config": 3, "place": "", "folder": ""}'])
def test_damage_is_told_with_its_place(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(JournalError, match=r"settings.json is damaged"):
        Settings.load(Storage(tmp_path))


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    kept(config(), tmp_path)
    record = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps({**record, "version": 2}))
    with pytest.raises(JournalError, match="newer"):
        Settings.load(Storage(tmp_path))


def test_what_others_may_have_written_is_not_run(tmp_path: Path) -> None:
    kept(config(), tmp_path)
    check_owner(Storage(tmp_path))
    (tmp_path / "settings.json").chmod(0o620)
    with pytest.raises(ConfigError, match=r"settings\.json"):
        check_owner(Storage(tmp_path))
