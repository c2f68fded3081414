"""`run_study` in this process: what it refuses, and how it ends."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from torch import nn
from torch.optim import SGD, Optimizer

from spark_hpo.config import StudyConfig, build_config, load_config
from spark_hpo.driver.run import run_study
from spark_hpo.driver.sync import sync_study
from spark_hpo.errors import ConfigError, StudyInterrupted, TrialError
from spark_hpo.report.status import StudyState, StudyStatus
from spark_hpo.search.registry import build_space
from spark_hpo.study.callback import Callback
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.context import TrainContext
from spark_hpo.train.tasks.tabular import TabularTask
from tests.support.tables import clusters_study, write_clusters
from tests.support.written_studies import StudyWriter

FUNCTION = """
def train(ctx):
    for epoch in range(*ctx.resource):
        ctx.report({{"score": {score}}})
"""
STUDY = """
name: small
study_dir: study
task: my_task.py:train
objective: {metric: score, mode: max}
space: {x: {type: uniform, low: 0, high: 1}}
search: {max_resource: 1}
budget: {trials: 1}
backend: inline
mlflow: {tracking_uri: "sqlite:///mlflow.db"}
"""


def test_two_task_files_of_one_name_are_two_tasks(tmp_path: Path) -> None:
    scores = []
    for folder, score in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_task.py").write_text(FUNCTION.format(score=score))
        (tmp_path / folder / "study.yaml").write_text(STUDY)
        paths = [f"study_dir={tmp_path}/{folder}/study", f"mlflow.tracking_uri=sqlite:///{tmp_path}/m.db"]
        result = run_study(load_config(tmp_path / folder / "study.yaml", paths))
        scores.append(result.best.metrics["score"])
    assert scores == [1.0, 2.0]


def test_run_refuses_an_earlier_study_before_it_writes_anything(tmp_path: Path) -> None:
    write_clusters(tmp_path / "table")
    search = {"max_resource": 3, "transfer": {"studies": [str(tmp_path / "mrach")]}}
    with pytest.raises(ConfigError) as caught:
        run_study(clusters_study(tmp_path, search=search))
    assert caught.value.key == "search.transfer.studies"
    assert not (tmp_path / "study").exists()


def test_run_learns_from_another_earlier_study_after_a_correction(tmp_path: Path) -> None:
    write_clusters(tmp_path / "table")

    def search(*studies: str) -> dict[str, Any]:
        return {"max_resource": 1, "sampler": "random", "transfer": {"studies": list(studies)}}

    pen = StudyWriter(storage=Storage(tmp_path / "march")).start(0, params={"learning_rate": 0.05})
    pen.end(0, value=0.9).close()
    run_study(clusters_study(tmp_path, search=search(), budget={"trials": 1}))
    corrected = clusters_study(tmp_path, search=search(str(tmp_path / "march")), budget={"trials": 1})
    assert run_study(corrected).study.progress.replayed == 1


RATE = {"type": "loguniform", "low": 0.01, "high": 0.1}


class OwnTask(TabularTask):
    """A user's task, which reads a parameter that the shipped task does not."""

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return SGD(model.parameters(), lr=self.params["lr"])


def test_run_refuses_parameters_that_a_shipped_class_does_not_read(tmp_path: Path) -> None:
    write_clusters(tmp_path / "table")
    config = clusters_study(tmp_path, space={"lr": RATE}, budget={"trials": 1})
    with pytest.raises(ConfigError) as caught:
        run_study(config, task=TabularTask)
    assert [error.key for error in caught.value.errors] == ["space.lr"]
    assert not (tmp_path / "study").exists()
    assert set(run_study(config, task=OwnTask).best_params) == {"lr"}


def test_run_resumes_a_study_with_a_parameter_that_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_clusters(tmp_path / "table")

    def study(trials: int) -> StudyConfig:
        space = {"learning_rate": RATE, "lr": RATE}
        return clusters_study(tmp_path, space=space, search={"max_resource": 1}, budget={"trials": trials})

    begun = {**study(1).model_dump(mode="json"), "space": build_space(study(1).space).to_json()}
    Definition.create(begun).write(Storage(tmp_path / "study"))  # as an earlier version has done
    for trials in (1, 2):
        caplog.clear()
        assert len(run_study(study(trials)).study.trials) == trials
        [warning] = [record.getMessage() for record in caplog.records if "space.lr" in record.getMessage()]
        assert "'learning_rate'" in warning


def broken_test(ctx: TrainContext) -> None:
    if ctx.is_evaluation:
        raise ValueError("no test today")
    ctx.report({"score": 1.0}, resource=ctx.resource.stop, checkpoint={"w": 1})


def test_run_whose_test_fails_returns_the_untested_result(tmp_path: Path) -> None:
    config = build_config(
        {
            "name": "small",
            "study_dir": str(tmp_path / "study"),
            "task": "broken_test",
            "objective": {"metric": "score", "mode": "max"},
            "space": {"x": {"type": "uniform", "low": 0, "high": 1}},
            "search": {"max_resource": 1},
            "budget": {"trials": 1},
            "backend": "inline",
            "mlflow": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"},
        },
        place="test",
    )
    result = run_study(config, task=broken_test)
    assert result.test == {}
    assert result.test_error is not None
    assert "no test today" in result.test_error
    assert result.summary()["test_error"] == result.test_error
    assert run_study(config, task=broken_test).best_params == result.best_params


def test_run_whose_test_fails_publishes_the_model_as_untested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clusters(tmp_path / "table")

    def fail(*_: object) -> None:
        raise TrialError("accuracy is NaN")

    monkeypatch.setattr("spark_hpo.study.Study.test", fail)
    result = run_study(clusters_study(tmp_path))
    assert result.model is not None
    assert (result.model.is_champion, result.model.is_best) == (False, False)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [version] = client.search_model_versions("name = 'clusters'")
    assert "accuracy is NaN" in version.tags["spark_hpo.untested"]
    assert sync_study(clusters_study(tmp_path)).model == result.model


@pytest.mark.parametrize("search", [{}, {"scheduler": "successive_halving"}, {"sampler": "grid"}])
def test_run_continues_a_finished_study_with_more_trials(tmp_path: Path, search: dict[str, Any]) -> None:
    def tune(trials: int) -> tuple[int, int, str]:
        config = clusters_study(
            tmp_path,
            task="score",
            data=None,
            objective={"metric": "score", "mode": "max"},
            space={"x": {"type": "uniform", "low": 0, "high": 1}},
            search={"max_resource": 3, **search},
            budget={"trials": trials, "resource": 60},
        )
        result = run_study(config, task=score)
        return len(result.study.trials), result.study.progress.run, result.stopped_by

    most = 5 if search.get("sampler") == "grid" else 8
    assert tune(4)[::2] == (4, "trials")
    assert tune(8)[::2] == (most, "trials" if most == 8 else "search_space")
    assert tune(8)[:2] == (most, 0)
    assert tune(2)[:2] == (most, 0)


def score(ctx: TrainContext) -> None:
    for _ in range(*ctx.resource):
        ctx.report({"score": ctx.params["x"]}, checkpoint={"w": 1})
    if ctx.is_evaluation:
        ctx.report({"score": ctx.params["x"]})


def test_run_interrupted_while_spark_starts_is_interrupted_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For instance during the probe of the executors: before the first trial, and after some."""
    write_clusters(tmp_path / "table")
    config = clusters_study(tmp_path, budget={"trials": 2})
    on_spark = clusters_study(tmp_path, budget={"trials": 2}, backend="spark")

    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("spark_hpo.driver.run.start_spark", interrupted)
    for trials in (0, 1):
        with pytest.raises(StudyInterrupted, match=f"{trials} trials are in"):
            run_study(on_spark)
        status = StudyStatus.read(Storage(on_spark.study_dir))
        assert (status.state, status.exit_code) == (StudyState.INTERRUPTED, 130)
        if not trials:
            with pytest.raises(StudyInterrupted):
                run_study(config, callbacks=[InterruptAfterAReport()])
    assert run_study(config).stopped_by == "trials"


class InterruptAfterAReport(Callback):
    def on_report(self, *_: object) -> None:
        raise KeyboardInterrupt
