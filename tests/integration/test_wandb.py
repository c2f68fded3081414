"""Weights & Biases has the curves and parameters that the callback has written, also after a resume."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import pytest

from spark_hpo import Callback, Result, tune
from spark_hpo.callbacks import WeightsAndBiases
from spark_hpo.errors import ConfigError, StudyInterrupted
from spark_hpo.tracking.system_metrics import system_metrics
from spark_hpo.trial import TrialState
from tests.support.interrupting import StopAfter
from tests.support.wandb_files import OfflineRun, offline_runs

wandb = pytest.importorskip("wandb", reason="wandb is an extra")

pytestmark = pytest.mark.medium

KEY = "0123456789abcdef0123456789abcdef01234567"
SPACE = {
    "rate": {"type": "loguniform", "low": 1e-3, "high": 1},
    "optimizer": {
        "type": "choice",
        "options": [{"name": "sgd", "momentum": {"type": "uniform", "low": 0, "high": 1}}, {"name": "adam"}],
    },
}


def train(ctx: Any) -> None:
    if ctx.params["rate"] > 0.3:
        raise ValueError("diverged")
    for epoch in range(*ctx.resource):
        ctx.report({"loss": ctx.params["rate"] / (epoch + 1), "epoch": epoch}, checkpoint={})
    if ctx.is_evaluation:
        ctx.report({"loss": 0.0, "epoch": 0})


def run(folder: Path, uri: str, *callbacks: Callback, **settings: Any) -> Result:
    return tune(
        train,
        SPACE,
        metric="loss",
        mode="min",
        trials=9,
        method="hyperband",
        storage=folder / "study",
        backend="inline",
        seed=2,
        callbacks=callbacks,
        mlflow={"tracking_uri": uri},
        name="wandb-study",
        **settings,
    )


def callback(folder: Path) -> WeightsAndBiases:
    return WeightsAndBiases("tables", mode="offline", dir=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mlflow_uri: str) -> Path:
    """A study with three drivers: the first without the callback, the second interrupted."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        with pytest.raises(StudyInterrupted):
            run(folder, mlflow_uri, StopAfter(4))
        with pytest.raises(StudyInterrupted):
            run(folder, mlflow_uri, callback(folder), StopAfter(4))
        run(folder, mlflow_uri, callback(folder))
    return folder


@pytest.fixture(scope="module")
def result(folder: Path, mlflow_uri: str) -> Result:
    return run(folder, mlflow_uri)  # at its end already


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, OfflineRun]:
    found = offline_runs(folder)
    assert len({run.run_id for run in found}) == len(found), "a run is there once, also after a resume"
    return {run.name: run for run in found}


def test_each_trial_is_a_run_of_the_group_with_its_curve(runs: dict[str, OfflineRun], result: Result) -> None:
    trials = result.study.trials
    assert runs.keys() == {"wandb-study", *(f"trial {i}" for i in trials)}
    assert {(run.group, run.project) for run in runs.values()} == {("wandb-study", "tables")}
    for i, trial in trials.items():
        found = runs[f"trial {i}"]
        assert found.job_type == "trial"
        rows = [(row["_step"], row["loss"], row["_timestamp"]) for row in found.history]
        assert rows == [(m.resource, m.metrics["loss"], m.time) for m in trial.curve]
        assert {key: found.config[key] for key in trial.params} == dict(trial.params)
        assert found.summary["state"] == str(trial.state)
        assert found.summary.get("checkpoint") == trial.checkpoint
        used = system_metrics(trial.usage)
        assert used
        assert {key: found.summary[key] for key in used} == used
        assert found.exit_code == (1 if trial.state is TrialState.FAILED else 0)
    assert len({trial.resource for trial in trials.values()}) > 1, "some were stopped at a lower rung"


def test_failed_trial_says_why(folder: Path, runs: dict[str, OfflineRun], result: Result) -> None:
    failed = [t for t in result.study.trials.values() if t.failure is not None]
    assert failed
    for trial in failed:
        assert trial.failure is not None
        found = runs[f"trial {trial.trial_id}"]
        assert found.summary["failure"] == trial.failure.message
        [text] = folder.glob(f"wandb/offline-run-*-{found.run_id}/files/traceback.txt")
        assert "diverged" in text.read_text()


def test_run_of_the_study_has_the_winner_and_the_leaderboard(
    runs: dict[str, OfflineRun], result: Result
) -> None:
    study, best = runs["wandb-study"], result.best
    assert (study.job_type, study.exit_code) == ("study", 0)
    assert study.summary["best.trial"] == best.trial_id
    assert study.summary["best.loss"] == best.metrics["loss"]
    assert study.summary["best.params.rate"] == best.params["rate"]
    assert study.summary["test.loss"] == result.test["loss"] == 0.0
    assert study.history[-1]["leaderboard"]["nrows"] == len(result.study.trials)
    assert study.config["objective"]["metric"] == "loss"
    assert [name for name, run in runs.items() if "best" in run.tags] == [f"trial {best.trial_id}"]


def test_study_that_has_ended_opens_no_run_of_a_trial_again(
    folder: Path, result: Result, mlflow_uri: str
) -> None:
    before = _trial_folders(folder)
    run(folder, mlflow_uri, callback(folder))
    assert _trial_folders(folder) == before


def _trial_folders(folder: Path) -> set[str]:
    return {file.parent.name for file in folder.glob("wandb/offline-run-*/run-*-*.wandb")}


def test_api_key_is_in_no_file(folder: Path, result: Result) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []


def test_service_that_does_not_answer_costs_the_study_nothing(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage: nobody listens at the address. Later the study is written offline, completely."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()  # it reads the address once
    observer = WeightsAndBiases("tables", mode="online", dir=tmp_path)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        patch.setattr("spark_hpo.callbacks.weights_and_biases._CLOSE_S", 0.5)
        done = run(tmp_path, mlflow_uri, observer)
    assert time.monotonic() - began < 15
    assert math.isfinite(done.best.loss)
    [warning] = [r.getMessage() for r in caplog.records if "lacks" in r.getMessage()]
    assert f"lacks {len(done.study.trials) + 1} runs" in warning
    assert KEY not in caplog.text
    wandb.teardown()
    run(tmp_path, mlflow_uri, callback(tmp_path))
    assert len(offline_runs(tmp_path)) == len(done.study.trials) + 1


def test_missing_key_is_refused_before_the_study_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError) as raised:
        WeightsAndBiases("tables", mode="online")
    assert "WANDB_API_KEY" in str(raised.value)
