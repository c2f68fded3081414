"""A credential goes in wherever one can, and comes out nowhere."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spark_hpo import cli
from spark_hpo.cli import driver
from spark_hpo.cli.console import diagnostics
from spark_hpo.cli.logs import set_up_logging
from spark_hpo.config import StudyConfig, build_config, load_config
from spark_hpo.data import files
from spark_hpo.errors import SparkHpoError, StorageError, TrialError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.study_runs import StudyCard
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.rendezvous.world import Rendezvous
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.trial import Failure, FailureKind, Report

CANARY = "c4n4ry-Sup3r-S3cret"
URI = f"http://ann:{CANARY}@127.0.0.1:1"
SPARK = {
    "spark.hadoop.fs.s3a.secret.key": CANARY,
    "spark.executorEnv.HF_TOKEN": CANARY,
    "spark.ssl.keyPassword": CANARY,
    "spark.master": "local[2]",
}
RECORD: dict[str, Any] = {
    "name": "small",
    "study_dir": "studies/small",
    "task": "tabular",
    "data": {"path": "data/small", "prepare": ["csv", "--input", "data/small.csv"]},
    "objective": {"metric": "accuracy", "mode": "max"},
    "space": {"learning_rate": {"type": "loguniform", "low": 1e-4, "high": 1e-1}},
    "search": {"max_resource": 9},
    "budget": {"trials": 10},
    "spark": SPARK,
    "mlflow": {"tracking_uri": URI},
}


@pytest.fixture(autouse=True)
def _nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_hpo.redact._hidden", frozenset())


@pytest.fixture
def config() -> StudyConfig:
    return build_config(RECORD, place="tune.yaml")


def told(error: BaseException) -> str:
    """All that an uncaught error shows, what it was raised from included."""
    return "".join(traceback.format_exception(error)) + repr(error)


@pytest.mark.parametrize(
    "wrong",
    [
        {"study_dir": f"s3://me:{CANARY}@bucket/x"},
        {"study_dir": f"https://acc.blob.core.windows.net/c?sv=1&sig={CANARY}"},
        {"data": {"path": f"s3://me:{CANARY}@bucket/x"}},
        {"data": {"path": "x", "prepare": ["csv", "--input", f"s3://me:{CANARY}@bucket/x"]}},
        {"search": {"max_resource": 9, "transfer": {"studies": [f"s3://me:{CANARY}@bucket/x"]}}},
        {"spark": {"spark.hadoop.fs.s3a.secret.key": [CANARY]}},
        {"spark": [CANARY, URI]},
        {"mlflow": URI},
        {"mlflow": {"tracking_uri": [URI]}},
        {"mlflow": {"tracking_uri": URI, "password": CANARY}},
        {"budget": {"trials": URI}},
        {"name": URI},
    ],
)
def test_error_about_a_setting_shows_no_secret(wrong: Any) -> None:
    with pytest.raises(SparkHpoError) as caught:
        build_config({**RECORD, **wrong}, place="tune.yaml")
    assert CANARY not in told(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        f"mlflow.tracking_uri.x={URI}",
        f"spark={{spark.ssl.keyPassword={CANARY}",
        f"mlflow.password='{CANARY}",
        f"mlflow.password={CANARY}",
    ],
)
def test_error_about_an_override_shows_no_secret(tmp_path: Path, override: str) -> None:
    (tmp_path / "tune.yaml").write_text(json.dumps(RECORD))
    with pytest.raises(SparkHpoError) as caught:
        load_config(tmp_path / "tune.yaml", [override])
    assert CANARY not in told(caught.value)


def test_error_about_yaml_shows_no_line(tmp_path: Path) -> None:
    (tmp_path / "tune.yaml").write_text(f"spark:\n  spark.ssl.keyPassword: {CANARY}: 1\n")
    with pytest.raises(SparkHpoError, match="line 2: not valid YAML") as caught:
        load_config(tmp_path / "tune.yaml")
    assert CANARY not in told(caught.value)


def test_study_directory_contains_no_secret_of_the_configuration(config: StudyConfig) -> None:
    definition = Definition.create({**config.model_dump(mode="json"), "space": {}})
    assert CANARY not in json.dumps(definition.config)
    assert CANARY not in repr(definition)


def test_repr_shows_no_secret(config: StudyConfig) -> None:
    objective = Objective(metric="accuracy", mode=Mode.MAX)
    rendezvous = Rendezvous(host="driver", timeout_s=1.0)
    spec = RankSpec(
        study_id="study",
        storage=Storage(f"s3://me:{CANARY}@bucket/x"),
        trainable="tabular",
        table=None,
        objective=objective,
        settings=TrainingSettings(),
        max_resource=9,
        seed=0,
        reader="auto",
        shuffle_window=1,
        rendezvous=rendezvous,
    )
    card = StudyCard(study_id="1", name="s", objective=objective, config=config.model_dump(mode="json"))
    for value in (config, config.mlflow, config.data, [config], card, spec):
        assert CANARY not in repr(value)
        assert CANARY not in str(value)
    assert repr(rendezvous.key) not in repr(spec)
    assert config.spark == SPARK, "what is shown is not what is used"
    assert "local[2]" in repr(config)


def test_failure_contains_no_secret(config: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "only-the-executor-knows")
    try:
        raise OSError(f"GET {URI}/x?X-Amz-Signature=abcdef: {CANARY} and only-the-executor-knows")
    except OSError as exc:
        texts = {"message": str(exc), "traceback": traceback.format_exc()}
    failure = Failure(kind=FailureKind.TRIAL, **texts)
    report = Report(trial_id=1, attempt=1, rung=0, resource=0, failure=failure)
    for text in (json.dumps(report.to_json()), repr(report)):
        assert CANARY not in text
        assert "abcdef" not in text
        assert "only-the-executor-knows" not in text
    record = report.to_json()
    record["failure"]["message"] = CANARY  # of an executor that does not know what the driver knows
    assert CANARY not in repr(Report.from_json(record))
    assert CANARY not in repr(replace(failure, traceback=CANARY))


def test_errors_of_the_package_contain_no_secret(config: StudyConfig) -> None:
    def all_below(kind: type[SparkHpoError]) -> list[type[SparkHpoError]]:
        return [kind, *(below for one in kind.__subclasses__() for below in all_below(one))]

    kinds = all_below(SparkHpoError)
    assert len(kinds) > 10
    for kind in kinds:
        assert CANARY not in told(kind(f"{URI} refuses {CANARY}"))


def in_storage() -> None:
    Storage(f"s3://me:{CANARY}@bucket/x").read("study.json")


def in_a_table() -> None:
    files.filesystem(f"s3://me:{CANARY}@bucket/x")


def in_an_unknown_protocol() -> None:
    Storage(f"nothing://{CANARY}/x?token={CANARY}").read("study.json")


def in_the_tracking_server() -> None:
    objective = Objective(metric="accuracy", mode=Mode.MAX)
    MlflowTracker(URI, "tests", StudyCard(study_id="1", name="s", objective=objective))


@pytest.mark.parametrize("fail", [in_storage, in_a_table, in_an_unknown_protocol, in_the_tracking_server])
def test_error_of_a_service_contains_no_secret(config: StudyConfig, fail: Callable[[], None]) -> None:
    with pytest.raises(SparkHpoError) as caught:
        fail()
    assert CANARY not in told(caught.value)


def test_translated_error_contains_no_signed_url(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage("memory://secrets")

    def fail(*_: object, **__: object) -> None:
        raise OSError(f"403 for https://bucket.s3.amazonaws.com/x?X-Amz-Signature=abcdef and {CANARY}")

    monkeypatch.setattr(type(storage._fs_and_root[0]), "cat_file", fail)
    with pytest.raises(StorageError, match="403 for https://bucket") as caught:
        storage.read("x")
    assert CANARY not in told(caught.value)
    assert "abcdef" not in told(caught.value)


def test_log_lines_and_their_tracebacks_are_without(config: StudyConfig, tmp_path: Path) -> None:
    set_up_logging(diagnostics(), str(tmp_path / "log.txt"))
    logger = logging.getLogger("spark_hpo.anything")
    try:
        raise ValueError(CANARY)
    except ValueError:
        logger.exception("%s failed: %s", URI, CANARY)
    written = (tmp_path / "log.txt").read_text()
    assert "ValueError" in written
    assert CANARY not in written


@pytest.mark.parametrize("kind", [RuntimeError, TrialError, KeyboardInterrupt])
def test_however_a_command_ends_it_prints_none(
    kind: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind(f"{URI}: {CANARY}")

    (tmp_path / "tune.yaml").write_text(json.dumps(RECORD))
    arguments = ["--config", str(tmp_path / "tune.yaml"), f"spark={{spark.ssl.keyPassword: {CANARY}}}"]
    monkeypatch.setattr(sys, "argv", ["tune.py", *arguments])
    monkeypatch.setattr(driver, "run_study", fail)
    with pytest.raises(SystemExit) as ended:
        cli.tune(arguments)
    assert ended.value.code in (1, 130)
    out, err = capfd.readouterr()
    assert err.strip(), "it says why"
    assert CANARY not in out + err
