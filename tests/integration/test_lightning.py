"""A LightningModule as a trial, in real processes: promoted, killed, on two ranks, out of memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from spark_hpo import tune
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.trial import Assignment, FailureKind, Split
from tests.support import documents
from tests.support.forked_ranks import curve, done, fork_server
from tests.support.lightning_trials import Fit


@pytest.fixture(scope="module")
def run_ranks() -> Iterator[Any]:
    with fork_server("tests.support.lightning_trials") as run:
        yield run


def assignment(start: int, stop: int, path: str | None = None, attempt: int = 1, **params: Any) -> Assignment:
    return Assignment(
        trial_id=4,
        attempt=attempt,
        params={"rate": 0.1, "batch_size": 16, **params},
        bracket=0,
        rung=start,
        resource_from=start,
        resource_to=stop,
        checkpoint=path,
        seed=11,
    )


def spec_of(function: Fit, folder: Path, **settings: Any) -> RankSpec:
    return RankSpec(
        study_id="study",
        storage=Storage(folder),
        trainable=function,
        table=None,
        objective=Objective(metric="val_loss", mode=Mode.MIN),
        settings=TrainingSettings(**settings),
        max_resource=4,
        seed=0,
        reader="arrow",
        shuffle_window=1,
    )


def test_promoted_module_continues_bit_for_bit(run_ranks: Any, tmp_path: Path) -> None:
    """With shuffled rows, dropout and a schedule, so that nothing may be missing in the checkpoint."""
    spec = spec_of(Fit(), tmp_path / "rungs")
    first = done(run_ranks(spec, assignment(0, 1)))
    second = done(run_ranks(spec, assignment(1, 4, first.checkpoint)))
    at_once = done(run_ranks(spec_of(Fit(), tmp_path / "at once"), assignment(0, 4)))
    assert [m.resource for m in at_once.curve] == [1, 2, 3, 4]
    assert curve(first, second) == curve(at_once)
    assert at_once.metrics.keys() == {"train_loss", "val_loss", "val_accuracy"}
    assert at_once.usage[0].wait_share is not None  # of its DataLoaders
    assert 0 < at_once.usage[0].wait_share < 1
    tested = done(run_ranks(spec, replace(assignment(4, 4, second.checkpoint), split=Split.TEST)))
    assert tested.metrics.keys() == {"val_loss", "val_accuracy"}
    validated = done(run_ranks(spec, assignment(4, 4, second.checkpoint)))
    assert validated.metrics["val_loss"] == at_once.metrics["val_loss"] != tested.metrics["val_loss"]


def test_module_may_come_from_the_other_package(run_ranks: Any, tmp_path: Path) -> None:
    other = done(run_ranks(spec_of(Fit(package="pytorch_lightning"), tmp_path / "other"), assignment(0, 2)))
    usual = done(run_ranks(spec_of(Fit(), tmp_path / "usual"), assignment(0, 2)))
    assert curve(other) == curve(usual)


def test_child_trains_its_parents_module_with_its_own_rate(run_ranks: Any, tmp_path: Path) -> None:
    spec = spec_of(Fit(), tmp_path)
    parent = done(run_ranks(spec, assignment(0, 1)))

    def moved(rate: float) -> float:
        child = replace(assignment(1, 2, parent.checkpoint, rate=rate), trial_id=5)
        return abs(done(run_ranks(spec, child)).metrics["val_loss"] - parent.metrics["val_loss"])

    assert moved(1e-9) < 1e-5 < 1e-3 < moved(0.1)


def test_attempt_resumes_a_killed_rank_of_a_module_bit_for_bit(run_ranks: Any, tmp_path: Path) -> None:
    function = Fit(kill=(1, 10))  # in the third epoch of four steps
    spec = spec_of(function, tmp_path / "killed", checkpoint_epochs=1)
    assert run_ranks(spec, assignment(0, 4), world_size=2)[1] is None
    assert "partial-1.json" in spec.storage.names("checkpoints/trial-000004")
    resumed = done(run_ranks(spec, assignment(0, 4, attempt=2), world_size=2))
    other = spec_of(replace(function, kill=None), tmp_path / "other")
    assert curve(resumed) == curve(done(run_ranks(other, assignment(0, 4), world_size=2)))


def test_two_ranks_train_a_module_as_one(run_ranks: Any, tmp_path: Path) -> None:
    function = Fit(has_sampler=True)
    one = done(run_ranks(spec_of(function, tmp_path / "one"), assignment(0, 4, dropout=0.0)))
    trial = assignment(0, 4, dropout=0.0)
    two = done(run_ranks(spec_of(function, tmp_path / "two"), trial, world_size=2))
    for a, b in zip(curve(one), curve(two), strict=True):
        assert b == pytest.approx(a, rel=1e-4)


def test_memory_of_a_module_is_back_after_each_trial(run_ranks: Any, tmp_path: Path) -> None:
    spec, reports = spec_of(Fit(), tmp_path), []
    for trial_id in range(4):
        params = {"is_too_large": True} if trial_id == 2 else {}
        [report] = run_ranks(spec, replace(assignment(0, 1, **params), trial_id=trial_id))
        reports.append(report)
    failed = reports.pop(2)
    assert failed.failure.kind is FailureKind.MEMORY
    assert curve(reports[0]) == curve(reports[1]) == curve(reports[2])
    at_start = [report.notes["resident_at_start"] for report in reports]
    assert max(at_start) - min(at_start) < 20e6, at_start


def test_trainer_arguments_that_fight_ours_lose_and_are_named(run_ranks: Any, tmp_path: Path) -> None:
    settings = (("max_epochs", 50), ("logger", True), ("gradient_clip_val", 1e-9))
    function = Fit(settings=settings)
    report = done(run_ranks(spec_of(function, tmp_path), assignment(0, 1, gradient_clip_val=0.5)))
    assert report.notes["overruled_trainer_arguments"] == {"max_epochs": "50 -> 4", "logger": "True -> False"}
    plain = done(run_ranks(spec_of(Fit(), tmp_path / "plain"), assignment(0, 1, gradient_clip_val=0.5)))
    assert curve(report) == curve(plain), "the clipping is the trial's"


@pytest.mark.parametrize(
    ("function", "params", "named"),
    [
        (Fit(settings=(("gradient_clip", 1.0),)), {}, "'gradient_clip_val'"),
        (Fit(), {"max_epochs": 4}, "max_epochs"),
    ],
)
def test_trainer_arguments_that_cannot_work_fail_the_trial(
    run_ranks: Any, tmp_path: Path, function: Fit, params: Any, named: str
) -> None:
    [report] = run_ranks(spec_of(function, tmp_path), assignment(0, 1, **params))
    assert report.failure.kind is FailureKind.TRIAL
    assert named in report.failure.message


def test_module_without_a_test_dataloader_is_not_tested(run_ranks: Any, tmp_path: Path) -> None:
    spec = spec_of(Fit(has_test=False), tmp_path)
    trained = done(run_ranks(spec, assignment(0, 1)))
    tested = done(run_ranks(spec, replace(assignment(1, 1, trained.checkpoint), split=Split.TEST)))
    assert tested.metrics == {}


def test_lightning_that_is_missing_is_named_with_its_extra() -> None:
    program = (
        "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\n"
        "from spark_hpo.errors import ConfigError\n"
        "from spark_hpo.integrations.lightning import fit\n"
        "try: fit(None, None)\n"
        "except ConfigError as exc: print(exc)"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert "the package lightning" in said
    assert "spark_hpo[lightning]" in said


@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.timeout(600)
def test_blocks_of_the_lightning_page_run(
    spark: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str
) -> None:
    """The program of docs/lightning.md trains on Spark."""
    blocks = documents.blocks("docs/lightning.md", "python")
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block.text, str(block), "exec"), names)
    result = names["result"]
    assert result.best_trial.metrics["val_accuracy"] > 0.8
    assert result.test.keys() == {"val_loss", "val_accuracy"}
    assert names["best"].layers[0].out_features == result.best_params["width"]
    registered = tune(
        names["train_and_register"],
        {"rate": {"type": "loguniform", "low": 0.01, "high": 0.1}, "width": 8},
        metric="val_accuracy",
        mode="max",
        trials=1,
        max_resource=1,
        backend="inline",
        storage=str(tmp_path / "registered"),
        mlflow={"tracking_uri": mlflow_uri, "registered_model": "circles"},
    )
    assert registered.model is not None
    mlflow.set_tracking_uri(mlflow_uri)
    network = mlflow.pytorch.load_model(registered.model.uri)
    rows = np.zeros((3, 2), np.float32)
    answers = mlflow.pyfunc.load_model(registered.model.uri).predict(rows)
    assert np.allclose(answers, network(torch.from_numpy(rows)).detach().numpy())
