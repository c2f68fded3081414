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
    "search": {"max_resource": 9, "enqueue": [{"rate": 0.01}]},
    "budget": {"trials": 4, "seconds": 60},
}


def config(**changes: object) -> StudyConfig:
    return build_config({**RECORD, **changes}, place="test")


def kept(study: StudyConfig, folder: Path) -> Settings:
    """Write settings, and read them back."""
    storage = Storage(folder)
    Settings.of(study).write(storage)
    found = Settings.load(storage)
    assert found is not None
    return found


def test_settings_restore_the_same_configuration(tmp_path: Path) -> None:
    study = config(spark={"spark.executor.memory": "4g"})
    found = kept(study, tmp_path).config_with([], study_dir="studies/digits")
    assert found == study


def test_settings_take_overrides_and_the_new_directory(tmp_path: Path) -> None:
    found = kept(config(), tmp_path).config_with(
        ["budget.seconds=90", "budget.resource=7"], study_dir="moved"
    )
    assert (found.study_dir, found.budget.seconds, found.budget.resource) == ("moved", 90, 7)
    assert found.budget.trials == 4


def test_settings_keep_no_credentials_and_ask_for_them(tmp_path: Path) -> None:
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


def test_settings_without_need_for_credentials_do_not_ask(tmp_path: Path) -> None:
    settings = kept(config(mlflow={"tracking_uri": URI}), tmp_path)
    assert settings.config_with([], study_dir="d", needs_credentials=False).name == "digits"


def test_settings_of_an_older_study_are_none(tmp_path: Path) -> None:
    assert Settings.load(Storage(tmp_path)) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"config": 3, "place": "", "folder": ""}'])
def test_settings_that_are_damaged_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(JournalError, match=r"settings.json is damaged"):
        Settings.load(Storage(tmp_path))


def test_settings_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    kept(config(), tmp_path)
    record = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps({**record, "version": 2}))
    with pytest.raises(JournalError, match="newer"):
        Settings.load(Storage(tmp_path))


def test_check_owner_refuses_a_file_that_others_may_write(tmp_path: Path) -> None:
    kept(config(), tmp_path)
    check_owner(Storage(tmp_path))
    (tmp_path / "settings.json").chmod(0o620)
    with pytest.raises(ConfigError, match=r"settings\.json"):
        check_owner(Storage(tmp_path))
