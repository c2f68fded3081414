from __future__ import annotations

from pathlib import Path

import pytest

from spark_hpo.backend.spark.quiet import is_quiet, quiet_jvm


@pytest.fixture(autouse=True)
def _no_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPARK_SUBMIT_OPTS", "SPARK_HOME", "SPARK_CONF_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_quiet_jvm_keeps_the_options_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-Xmx2g")
    assert not is_quiet()
    quiet_jvm()
    assert is_quiet()


@pytest.mark.parametrize("place", ["SPARK_HOME", "SPARK_CONF_DIR"])
def test_quiet_jvm_leaves_a_configured_log4j_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = tmp_path / "conf" if place == "SPARK_HOME" else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / "log4j2.properties").touch()
    monkeypatch.setenv(place, str(tmp_path))
    quiet_jvm()
    assert not is_quiet()


def test_quiet_jvm_leaves_options_of_log4j_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_SUBMIT_OPTS", "-Dlog4j2.configurationFile=mine.properties")
    quiet_jvm()
    assert not is_quiet()
