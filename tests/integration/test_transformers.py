"""A Hugging Face Trainer as a trial, in real processes: promoted, killed, on two ranks, out of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from spark_hpo import tune
from spark_hpo.driver.sync import sync_study
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.trial import Assignment, FailureKind, Split
from tests.support import documents, sms_spam
from tests.support.forked_ranks import curve, done, fork_server
from tests.support.sms_spam import FineTune

pytestmark = pytest.mark.skipif(not sms_spam.TEXTS.exists(), reason="the messages are not here")


@pytest.fixture(scope="module")
def run_ranks() -> Iterator[Any]:
    with fork_server("tests.support.sms_spam") as run:
        yield run


def assignment(start: int, stop: int, path: str | None = None, attempt: int = 1, **params: Any) -> Assignment:
    return Assignment(
        trial_id=4,
        attempt=attempt,
        params={"learning_rate": 1e-2, "batch_size": 8, **params},
        bracket=0,
        rung=start,
        resource_from=start,
        resource_to=stop,
        checkpoint=path,
        seed=11,
    )


def spec_of(function: FineTune, folder: Path, **settings: Any) -> RankSpec:
    return RankSpec(
        study_id="study",
        storage=Storage(folder),
        trainable=function,
        table=None,
        objective=Objective(metric="eval_loss", mode=Mode.MIN),
        settings=TrainingSettings(**settings),
        max_resource=3,
        seed=0,
        reader="arrow",
        shuffle_window=1,
    )


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_promoted_trial_continues_bit_for_bit(run_ranks: Any, tmp_path: Path, lora: bool) -> None:
    spec = spec_of(FineTune(lora=lora), tmp_path / "rungs")
    first = done(run_ranks(spec, assignment(0, 1)))
    second = done(run_ranks(spec, assignment(1, 3, first.checkpoint)))
    at_once = done(run_ranks(spec_of(FineTune(lora=lora), tmp_path / "at once"), assignment(0, 3)))
    assert [m.resource for m in at_once.curve] == [1, 2, 3]
    assert curve(first, second) == curve(at_once)
    assert at_once.metrics.keys() == {"eval_loss", "eval_accuracy", "train_loss"}
    assert at_once.usage[0].wait_share is not None  # of its DataLoaders
    assert 0 < at_once.usage[0].wait_share < 0.5
    tested = done(run_ranks(spec, replace(assignment(3, 3, second.checkpoint), split=Split.TEST)))
    assert tested.metrics.keys() == {"eval_loss", "eval_accuracy"}
    validated = done(run_ranks(spec, assignment(3, 3, second.checkpoint)))
    assert validated.metrics["eval_loss"] == at_once.metrics["eval_loss"] != tested.metrics["eval_loss"]


def test_child_trains_its_parents_weights_with_its_own_rate(run_ranks: Any, tmp_path: Path) -> None:
    spec = spec_of(FineTune(), tmp_path)
    parent = done(run_ranks(spec, assignment(0, 1)))

    def moved(rate: float) -> float:
        child = replace(assignment(1, 2, parent.checkpoint, learning_rate=rate), trial_id=5)
        return abs(done(run_ranks(spec, child)).metrics["eval_loss"] - parent.metrics["eval_loss"])

    assert moved(1e-9) < 1e-5 < 1e-3 < moved(1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_attempt_resumes_a_killed_rank_bit_for_bit(run_ranks: Any, tmp_path: Path, rank: int) -> None:
    """With dropout, so that both ranks need the states of their own random generators."""
    function = FineTune(kill=(rank, 6))
    spec = spec_of(function, tmp_path / "killed", checkpoint_seconds=1e-9)
    reports = run_ranks(spec, assignment(0, 3), world_size=2)
    assert reports[rank] is None
    assert "partial-1.json" in spec.storage.names("checkpoints/trial-000004")
    resumed = done(run_ranks(spec, assignment(0, 3, attempt=2), world_size=2))
    other = replace(function, kill=None)
    undisturbed = done(run_ranks(spec_of(other, tmp_path / "other"), assignment(0, 3), world_size=2))
    names = ("eval_loss", "eval_accuracy")
    assert [[m.metrics[name] for name in names] for m in resumed.curve] == [
        [m.metrics[name] for name in names] for m in undisturbed.curve
    ]


def test_two_ranks_and_accumulated_steps_train_as_one(run_ranks: Any, tmp_path: Path) -> None:
    """BERT ignores the number of items that a Trainer passes; the Trainer would scale its loss twice."""
    trial = assignment(0, 3, dropout=0.0)
    one = done(run_ranks(spec_of(FineTune(), tmp_path / "one"), trial))
    spec = spec_of(FineTune(), tmp_path / "two")
    two = done(run_ranks(spec, trial, world_size=2))
    halves = FineTune(settings=(("gradient_accumulation_steps", 2),))
    accumulated = done(run_ranks(spec_of(halves, tmp_path / "halves"), trial))
    for a, b, c in zip(curve(one), curve(two), curve(accumulated), strict=True):
        assert b == pytest.approx(a, rel=1e-5)
        assert c == pytest.approx(a, rel=1e-5)
    validated = done(run_ranks(spec, assignment(3, 3, two.checkpoint, dropout=0.0), world_size=2))
    assert validated.metrics["eval_loss"] == pytest.approx(two.metrics["eval_loss"], rel=1e-6)


@pytest.mark.slow
def test_memory_is_back_after_each_trial_and_after_one_that_lacks_it(run_ranks: Any, tmp_path: Path) -> None:
    """Each rank is a fresh process: nothing that a trial has allocated reaches the next one."""
    spec = spec_of(FineTune(size="pretrained", rows=8), tmp_path)
    reports = []
    for trial_id in range(4):
        params = {"is_too_large": True} if trial_id == 2 else {}
        trial = replace(assignment(0, 1, **params), trial_id=trial_id)
        [report] = run_ranks(spec, trial)
        reports.append(report)
    failed = reports.pop(2)
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.MEMORY
    assert curve(reports[0]) == curve(reports[1]) == curve(reports[2])
    at_start = [report.notes["resident_at_start"] for report in reports]
    grown = [
        report.notes["resident_at_most"] - start for report, start in zip(reports, at_start, strict=True)
    ]
    assert min(grown) > 200e6, "the trials have used memory"
    assert max(at_start) - min(at_start) < 20e6, at_start


def test_arguments_that_fight_ours_lose_and_are_named(run_ranks: Any, tmp_path: Path) -> None:
    settings = (
        ("save_strategy", "steps"),
        ("num_train_epochs", 50),
        ("learning_rate", 7.0),
        ("max_steps", -1),
    )
    report = done(run_ranks(spec_of(FineTune(settings=settings), tmp_path), assignment(0, 1)))
    assert report.notes["overruled_training_arguments"] == {
        "save_strategy": "steps -> no",
        "num_train_epochs": "50 -> 3",
    }
    assert [m.resource for m in report.curve] == [1]
    plain = done(run_ranks(spec_of(FineTune(), tmp_path / "plain"), assignment(0, 1)))
    assert curve(report) == curve(plain), "the learning rate is the trial's"


@pytest.mark.parametrize(
    ("function", "params", "named"),
    [
        (FineTune(settings=(("learning_rat", 1.0),)), {}, "'learning_rate'"),
        (FineTune(), {"num_train_epochs": 4}, "num_train_epochs"),
        (FineTune(settings=(("gradient_accumulation_steps", 3),)), {}, "multiple of 3"),
        (FineTune(arguments="plain"), {}, "save_strategy"),
        (FineTune(model_task="text-classification", has_tokenizer=False), {}, "processing_class"),
    ],
)
def test_arguments_that_cannot_work_fail_the_trial(
    run_ranks: Any, tmp_path: Path, function: FineTune, params: Any, named: str
) -> None:
    [report] = run_ranks(spec_of(function, tmp_path), assignment(0, 1, **params))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.TRIAL
    assert named in report.failure.message


def test_arguments_may_start_from_those_of_the_user(run_ranks: Any, tmp_path: Path) -> None:
    based = done(run_ranks(spec_of(FineTune(arguments="based"), tmp_path), assignment(0, 1)))
    assert based.notes["overruled_training_arguments"] == {"save_strategy": "epoch -> no"}
    assert based.metrics.keys() == {"eval_loss", "eval_accuracy"}


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_registered_model_of_the_best_trial_answers_to_texts(
    tmp_path: Path, mlflow_uri: str, lora: bool
) -> None:
    name = f"spam-{lora}"
    function = FineTune(model_task="text-classification", lora=lora)
    space = {"learning_rate": {"type": "loguniform", "low": 1e-3, "high": 1e-2}, "batch_size": 8}
    result = tune(
        function,
        space,
        metric="eval_accuracy",
        mode="max",
        trials=2,
        max_resource=1,
        method="random",
        backend="inline",
        storage=str(tmp_path / "study"),
        mlflow={"tracking_uri": mlflow_uri, "registered_model": name},
    )
    assert result.model is not None
    assert (result.model.uri, result.model.is_champion) == (f"models:/{name}/1", True)
    mlflow.set_tracking_uri(mlflow_uri)
    texts = ["See you at lunch?", "You have won a prize. Text WIN to claim."]
    answers = mlflow.pyfunc.load_model(f"models:/{name}/1").predict(pd.DataFrame({"text": texts}))
    classify = mlflow.transformers.load_model(f"models:/{name}/1")
    assert answers["label"].tolist() == [answer["label"] for answer in classify(texts)]
    assert answers["score"].between(0, 1).all()
    if not lora:  # the weights of checkpoint and pipeline are stored once
        described = json.loads((tmp_path / "study" / result.best_trial.checkpoint).read_text())
        files = {file["path"]: file["part"] for file in described["content"]["files"]}
        assert files["model.safetensors"] == files["mlflow_model/model/model.safetensors"]
    # Synchronising finds the version that the study has registered.
    assert sync_study(result.config, task=function, space=space).model == result.model


def test_trial_without_a_test_dataset_is_not_tested(run_ranks: Any, tmp_path: Path) -> None:
    spec = spec_of(FineTune(has_test=False), tmp_path)
    trained = done(run_ranks(spec, assignment(0, 1)))
    tested = done(run_ranks(spec, replace(assignment(1, 1, trained.checkpoint), split=Split.TEST)))
    assert tested.metrics == {}


def test_package_that_is_missing_is_named_with_its_extra() -> None:
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "from spark_hpo.errors import ConfigError\n"
        "from spark_hpo.integrations.transformers import training_arguments\n"
        "try: training_arguments(None)\n"
        "except ConfigError as exc: print(exc)"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert "the package transformers" in said
    assert "spark_hpo[transformers]" in said


@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.timeout(900)
def test_blocks_of_the_transformers_page_run(
    spark: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_uri: str
) -> None:
    """The program of docs/transformers.md fine-tunes real weights on Spark."""
    blocks = documents.blocks("docs/transformers.md", "python")
    assert len(blocks) == 4
    (tmp_path / "sms.tsv").symlink_to(sms_spam.TEXTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block.text, str(block), "exec"), names)
    result, adapted = names["result"], names["adapted"]
    assert result.best_trial.metrics["eval_accuracy"] > 0.9
    assert result.test.keys() == {"eval_loss", "eval_accuracy"}
    assert adapted.best_trial.metrics["eval_accuracy"] > 0.8
    spam, ham = names["classify"](names["texts"])
    assert [spam["label"], ham["label"]] == ["LABEL_1", "LABEL_0"] == list(names["predicted"]["label"])
    assert "adapter_model.safetensors" in {path.name for path in adapted.best_model().iterdir()}
