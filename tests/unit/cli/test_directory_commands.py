"""Commands that need a study directory alone, on directories that are written by hand."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pandas as pd
import pytest

from spark_hpo import cli
from spark_hpo.cli.directory import load_study
from spark_hpo.search.registry import build_space
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.driver_settings import Settings
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Failure, FailureKind, TrialState
from tests.support.tables import clusters_study
from tests.support.written_studies import StudyWriter


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def study(tmp_path: Path) -> str:
    """Two trials: one has 0.7 after one epoch, and one has failed."""
    pen = StudyWriter(storage=Storage(tmp_path / "study"))
    pen.start(0).start(1).at(2).end(0, value=0.7).settle(TrialState.COMPLETED, 0)
    failure = Failure(kind=FailureKind.TRIAL, message="ValueError: as it must")
    pen.end(1, resource=0, value=None, failure=failure).settle(TrialState.FAILED, 1).close()
    return str(tmp_path / "study")


def test_watch_tells_a_program_every_event_and_then_the_state(
    study: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("watch", study, "--json") == 0
    *events, status = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    lines = (Path(study) / "journal/000001.jsonl").read_text().splitlines()
    assert events == [json.loads(line) for line in lines], "as the journal has them"
    assert run("status", study, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    for answer in (status, again):
        answer["last_event"].pop("seconds_ago")
    assert status == again
    assert (status["state"], status["best"]["value"]) == ("finished", 0.7)


def test_exported_trials_say_why_one_has_failed(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", study, "--what", "trials") == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("trial")
    assert frame.loc[1, "failure"] == "ValueError: as it must"
    assert pd.isna(frame.loc[0, "failure"])


def test_load_study_leaves_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    config = clusters_study(tmp_path)
    storage = Storage(tmp_path / "study")
    space = build_space(config.space)
    Definition.create({**config.model_dump(mode="json"), "space": space.to_json()}).write(storage)
    Settings.of(config).write(storage)
    monkeypatch.chdir(tmp_path)
    stored = load_study(storage)
    assert (os.getcwd(), stored.folder) == (str(tmp_path), str(tmp_path / "home"))
    stored.change_to_folder()
    assert os.getcwd() == stored.folder


def test_gc_of_all_names_in_a_folder_skips_what_is_not_a_study(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"x")
    (tmp_path / "mlartifacts").mkdir()
    (Path(study) / "progress").mkdir()
    (Path(study) / "progress/000001-1").write_bytes(b"x" * 10)
    assert run("gc", *(str(path) for path in sorted(tmp_path.iterdir()))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines if "skipped" in line] == [
        str(tmp_path / "mlartifacts"),
        str(tmp_path / "mlflow.db"),
    ]
    assert f"{study}: freed 1 files, 10 bytes" in lines
    assert (tmp_path / "mlflow.db").read_bytes() == b"x"
