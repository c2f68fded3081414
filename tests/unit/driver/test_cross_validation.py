"""A whole cross-validation in this process: folds, the final model, its test and its registration."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from spark_hpo import tune
from spark_hpo.config import StudyConfig
from spark_hpo.driver.cleanup import clean_study
from spark_hpo.driver.export import export_model
from spark_hpo.driver.result import Result
from spark_hpo.driver.run import run_study
from spark_hpo.driver.sync import sync_study
from spark_hpo.errors import ConfigError, number
from spark_hpo.report.events import line_of
from spark_hpo.report.status import StudyStatus
from spark_hpo.report.view import load_study
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.context import TrainContext
from spark_hpo.train.predictor import Predictor
from spark_hpo.trial import Split
from tests.support.mlflow_database import write_database
from tests.support.tables import clusters_study, write_clusters

FOLDS = {"resource": "folds", "max_resource": 3, "epochs": 2, "scheduler": "full"}


def folds_study(folder: Path, *, rows: int = 120, **changes: Any) -> StudyConfig:
    if not (folder / "table").exists():
        write_clusters(folder / "table", rows=rows)
    return clusters_study(folder, **{"search": FOLDS, "budget": {"trials": 2}, **changes})


def journal(result: Result) -> Journal:
    return Journal(Storage(result.config.study_dir), result.config.objective.build())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_study(folds_study(tmp_path_factory.mktemp("study")))


def test_best_trial_has_the_mean_over_all_folds_and_its_spread(finished: Result) -> None:
    folds = [e.report for e in journal(finished).past if e.kind is EventKind.FOLD]
    values = [r.metrics["accuracy"] for r in folds if r.trial_id == finished.best.trial_id]
    assert len(values) == finished.best.resource == 3
    assert finished.best.metrics["accuracy"] == pytest.approx(sum(values) / 3)
    mean = sum(values) / 3
    assert finished.best.spread["accuracy"] == pytest.approx(
        (sum((value - mean) ** 2 for value in values) / 3) ** 0.5
    )
    assert {r.checkpoint for r in folds} == {None}
    assert all(measured.resource == 2 for r in folds for measured in r.curve), "measured after the last epoch"


def test_final_model_is_trained_on_training_and_validation_rows(finished: Result) -> None:
    [final] = journal(finished).finals.values()
    assert [(m.resource, m.rows) for m in final.curve] == [(2, 2 * (120 + 60))]
    assert finished.best.checkpoint == final.checkpoint
    assert finished.test["accuracy"] > 0.7
    assert finished.model is not None
    assert Storage(finished.config.study_dir).names("checkpoints") == [
        f"trial-{finished.best.trial_id:06d}"
    ], "nothing is left of the folds"


def test_study_reads_the_same_from_its_directory(finished: Result) -> None:
    view = load_study(finished.config.study_dir)
    assert view.best_trial == finished.best
    assert list(view.trials["spread"]) == [t.spread["accuracy"] for t in view.record.ranking]
    assert view.best_trial.checkpoint is not None
    clean_study(Storage(finished.config.study_dir), ended_for_s=0)
    assert Storage(finished.config.study_dir).size(view.best_trial.checkpoint)


def test_spread_is_shown_everywhere(finished: Result) -> None:
    spread = finished.best.spread["accuracy"]
    assert finished.summary()["best"]["spread"] == spread
    status = StudyStatus.read(Storage(finished.config.study_dir))
    assert status.to_json()["best"]["spread"] == spread
    assert f"± {spread:.2g}" in repr(load_study(finished.config.study_dir))
    page = Storage(finished.config.study_dir).read("report.html") or b""
    assert f"± {number(spread, 2)}" in page.decode()
    client = MlflowClient(finished.config.mlflow.tracking_uri)
    [experiment] = [e for e in client.search_experiments() if e.name == "clusters"]
    runs = client.search_runs([experiment.experiment_id])
    written = [run.data.metrics["accuracy_std"] for run in runs if "accuracy_std" in run.data.metrics]
    assert sorted(written) == sorted(t.spread["accuracy"] for t in finished.journal.trials.values())
    assert [r.data.metrics["best_accuracy_std"] for r in runs if "best_accuracy_std" in r.data.metrics] == [
        spread
    ]


def test_model_can_be_exported_and_written_to_mlflow_again(finished: Result, tmp_path: Path) -> None:
    best = load_study(finished.config.study_dir).best_trial
    export_model(finished.config, best, tmp_path / "model")
    rows = pd.read_parquet(Path(finished.config.study_dir).parent / "table/test").drop(columns="side")
    exported = Predictor.load(tmp_path / "model").predict(rows)
    assert exported.equals(finished.best_model().predict(rows))
    synced = sync_study(finished.config)
    assert synced.is_complete
    assert synced.model is not None
    assert finished.model is not None
    assert synced.model.summary() == finished.model.summary()


def test_finished_study_repeats_nothing(finished: Result) -> None:
    before = len([e for e in journal(finished).past if e.kind is EventKind.ASSIGNED])
    again = run_study(finished.config)
    assert len([e for e in journal(again).past if e.kind is EventKind.ASSIGNED]) == before
    assert again.best == finished.best
    assert again.study.progress.replayed == 2 * 3


def test_larger_budget_continues_and_trains_a_final_model_of_a_new_best(tmp_path: Path) -> None:
    first = run_study(folds_study(tmp_path, budget={"trials": 1}))
    more = run_study(folds_study(tmp_path, budget={"trials": 4}))
    assert len(more.journal.trials) == 4
    assert more.best.metrics["accuracy"] >= first.best.metrics["accuracy"]
    assert more.best.checkpoint is not None
    assert Storage(more.config.study_dir).size(more.best.checkpoint)


def test_function_gets_the_loaders_of_its_fold(tmp_path: Path) -> None:
    seen: dict[Any, list[tuple[float, ...]]] = defaultdict(list)
    told = []

    def train(ctx: TrainContext) -> None:
        told.append((ctx.fold, ctx.num_folds, tuple(ctx.resource), str(ctx.split)))
        for _ in range(*ctx.resource):
            for split in ("train", "validation"):
                batches = [torch.stack([batch["x"], batch["y"]], 1) for batch in ctx.batches(split)]
                seen[ctx.fold, split] = [tuple(row) for row in torch.cat(batches).tolist()]
            ctx.report({"accuracy": 0.5}, checkpoint={"model": 1})
        if ctx.is_evaluation:
            ctx.report({"accuracy": 0.6})

    result = run_study(folds_study(tmp_path, budget={"trials": 1}), task=train)
    folds = [(fold, 3, (0, 2), "validation") for fold in (1, 2, 3)]
    assert told == [*folds, (None, 3, (0, 2), "validation"), (None, 3, (2, 2), "test")]
    everything = Counter(seen[None, "train"])
    assert everything.total() == 180
    for fold in (1, 2, 3):
        assert Counter(seen[fold, "train"]) + Counter(seen[fold, "validation"]) == everything
    assert result.test == {"accuracy": 0.6}
    assert result.best_model() == {"model": 1}


def test_function_without_a_table_is_told_its_fold(tmp_path: Path) -> None:
    def train(ctx: TrainContext) -> dict[str, float]:
        assert ctx.num_folds == 3
        return {"score": float(ctx.fold or 0)}

    study = clusters_study(
        tmp_path,
        data=None,
        search=FOLDS,
        budget={"trials": 1},
        objective={"metric": "score", "mode": "max"},
    )
    assert run_study(study, task=train).best.metrics["score"] == 2.0


def test_easy_first_fold_does_not_count_as_the_best_value(tmp_path: Path) -> None:
    def train(ctx: TrainContext) -> dict[str, float]:
        return {"score": 0.9 if ctx.fold == 1 else ctx.params["learning_rate"]}

    result = run_study(
        clusters_study(
            tmp_path,
            data=None,
            search={"resource": "folds", "max_resource": 3, "scheduler": "asha"},
            budget={"trials": 6},
            objective={"metric": "score", "mode": "max"},
            stopping={"target": 0.8},
        ),
        task=train,
    )
    assert result.stopped_by == "trials", "the mean over all folds is below the target"
    assert {trial.resource for trial in result.journal.trials.values()} == {1, 3}
    [line] = [trace for trace in result.plot.history().data if trace.name == "best so far"]
    assert line.y[-1] == result.best.metrics["score"] < 0.8
    assert result.trials["resource"].iloc[0] == 3
    lines = [line_of(event, result.record) for event in journal(result).past]
    assert any("fold 1: score 0.9, " in line for line in lines)
    assert any("±" in line and "after 3 folds" in line for line in lines)


def test_damaged_file_is_skipped_in_every_fold(tmp_path: Path) -> None:
    write_clusters(tmp_path / "table")
    train = tmp_path / "table/train"
    shutil.copy(train / "part-0.parquet", train / "part-1.parquet")
    content = bytearray((train / "part-1.parquet").read_bytes())
    content[4:400] = b"\0" * 396  # the pages, not the footer
    (train / "part-1.parquet").write_bytes(bytes(content))
    data = {"path": str(tmp_path / "table"), "on_bad_file": "skip", "cache": {"enabled": False}}
    result = run_study(folds_study(tmp_path, data=data, budget={"trials": 1}))
    [final] = journal(result).finals.values()
    assert result.study.excluded_files == (str(train / "part-1.parquet"),)
    assert [m.rows for m in final.curve] == [2 * (120 + 60)]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"search": {**FOLDS, "max_resource": 181}}, "search.max_resource"),
        ({"search": {**FOLDS, "max_resource": 1}}, "search.max_resource"),
        ({"search": {**FOLDS, "scheduler": "population_based"}}, "search.scheduler"),
        ({"training": {"patience": 2}}, "training.patience"),
    ],
)
def test_what_folds_cannot_do_is_refused(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_study(folds_study(tmp_path, **changes))
    assert caught.value.key == key


def test_final_training_that_fails_leaves_the_result_without_a_model(tmp_path: Path) -> None:
    def train(ctx: TrainContext) -> dict[str, float]:
        if ctx.fold is None:
            raise RuntimeError("no memory for so many rows")
        return {"accuracy": 0.5}

    result = run_study(folds_study(tmp_path, budget={"trials": 1}), task=train)
    assert result.best.checkpoint is None
    assert result.test == {}
    assert result.test_error is not None
    lost = [e.report for e in journal(result).past if e.kind is EventKind.LOST]
    assert [report.split for report in lost] == [Split.TRAIN]


def test_tune_with_folds_cross_validates_like_a_study_file(tmp_path: Path) -> None:
    write_clusters(tmp_path / "table")
    result = tune(
        "tabular",
        {"learning_rate": {"type": "loguniform", "low": 0.01, "high": 0.1}},
        metric="accuracy",
        mode="max",
        data=tmp_path / "table",
        folds=3,
        max_resource=2,
        trials=1,
        storage=tmp_path / "study",
        backend="inline",
        mlflow={"tracking_uri": write_database(tmp_path)},
    )
    of_file = folds_study(tmp_path, data={"path": "t", "folds": 3}, search={"max_resource": 2})
    assert result.config.search == of_file.search
    folds = [e.report for e in journal(result).past if e.kind is EventKind.FOLD]
    assert [report.fold for report in folds] == [1, 2, 3]
    assert result.best.spread["accuracy"] >= 0


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"folds": 1}, "folds"),
        ({"folds": 3, "max_resource": 0}, "max_resource"),
        ({"folds": "many"}, "folds"),
    ],
)
def test_tune_names_the_argument_that_folds_do_not_allow(
    tmp_path: Path, arguments: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tune("tabular", {}, metric="accuracy", mode="max", storage=tmp_path / "study", **arguments)
    assert caught.value.key == key
