"""`tune` and its result in a program, without Spark."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from hyperopt import hp
from hypothesis import given
from hypothesis import strategies as st

from spark_hpo import Callback, Result, load_study, tune
from spark_hpo.errors import CheckpointError, ConfigError, NoTrialSucceeded
from spark_hpo.search.space import Space
from spark_hpo.tracking.connection import usual_uri
from spark_hpo.tuning import _name_of
from tests.support.tables import write_clusters

NOT_GIVEN = object()  # the error has no value
SPACE = {
    "learning_rate": {"type": "loguniform", "low": 0.01, "high": 0.1},
    "hidden_units": {"type": "int", "low": 2, "high": 16},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    write_clusters(folder / "table")
    return folder


def search(folder: Path, **changes: Any) -> Result:
    arguments: dict[str, Any] = {
        "metric": "accuracy",
        "mode": "max",
        "data": folder / "table",
        "trials": 8,
        "max_resource": 3,
        "storage": folder / "study",
        "training": {"batch_size": 16},
        "backend": "inline",
    }
    return tune("tabular", changes.pop("space", SPACE), **{**arguments, **changes})


@pytest.fixture(scope="module")
def result(folder: Path) -> Result:
    return search(folder)


def test_result_has_the_best_trial_and_all_others(result: Result) -> None:
    trials = result.trials
    assert len(trials) == 8
    assert trials["value"].max() == result.best_trial.metrics["accuracy"] > 0.7
    best = trials.set_index("trial").loc[result.best_trial.trial_id]
    assert {name: best[name] for name in SPACE} == result.best_params
    assert result.summary()["best"]["params"] == result.best_params


def test_best_model_predicts_as_in_its_test(folder: Path, result: Result) -> None:
    rows = pd.read_parquet(folder / "table/test")
    model = result.best_model()
    answers = model.predict(rows.drop(columns="side"))["prediction"]
    assert (answers == rows["side"]).mean() == pytest.approx(result.test["accuracy"])
    assert isinstance(model.model, torch.nn.Module)
    assert not model.model.training


@pytest.mark.parametrize("name", ["history", "parallel", "importance", "rungs", "curves", "slots"])
def test_plots_are_plotly_figures(result: Result, name: str) -> None:
    figure = getattr(result.plot, name)()
    assert isinstance(figure, go.Figure)
    assert len(figure.data) > 0 or name == "importance"  # of which eight trials may say nothing


def test_plot_of_history_over_resource_differs(result: Result) -> None:
    assert result.plot.history(over="resource").layout.xaxis.title.text.startswith("epochs")


def test_report_is_an_html_page(result: Result) -> None:
    page = Path(result.report())
    assert page == Path(result.config.study_dir, "report.html")
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_load_study_opens_a_finished_study(folder: Path, result: Result) -> None:
    study = load_study(folder / "study")
    assert study.best_params == result.best_params
    pd.testing.assert_frame_equal(study.trials, result.trials)
    assert study.plot.history() == result.plot.history()
    with pytest.raises(ConfigError, match="there is no study here"):
        load_study(folder / "table")


def test_result_displays_a_table_and_a_plot(result: Result) -> None:
    html = result._repr_html_()
    assert html.count("<tr") == 1 + 8
    assert "plotly" in html
    accuracy = f"{result.test['accuracy']:.5g} on test"
    assert accuracy in html
    assert accuracy in repr(result)


def test_tune_called_again_runs_nothing(folder: Path, result: Result) -> None:
    again = search(folder)
    assert again.study.progress.run == 0
    assert again.summary()["best"] == result.summary()["best"]


def test_tune_refuses_another_space_in_the_same_storage(folder: Path, result: Result) -> None:
    with pytest.raises(ConfigError, match=r"space.*\n.*storage="):
        search(folder, space={**SPACE, "dropout": {"type": "uniform", "low": 0, "high": 0.5}})
    with pytest.raises(ConfigError, match=r"there is a study already.*storage="):
        search(folder, resume="never")
    with pytest.raises(ConfigError, match="there is no study to resume"):
        search(folder, resume="must", storage=folder / "none")


def test_tune_writes_runs_beside_the_study_unless_mlflow_has_a_uri(
    folder: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert result.config.mlflow.tracking_uri == f"sqlite:///{folder}/mlflow.db"
    assert result.model is not None
    assert (folder / "mlflow.db").exists()
    assert usual_uri("s3://bucket/study") == "sqlite:///mlflow.db"
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "17.3")
    assert usual_uri("/Volumes/a/b/c/study") == "databricks"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert usual_uri("study") == "http://localhost:5000"


def refusal(folder: Path, changes: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        search(folder, **{"storage": folder / "wrong", **changes})
    assert str(error.value).startswith("tune(): ")
    assert not (folder / "wrong/journal").exists() or not list((folder / "wrong/journal").iterdir())
    return error.value


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"trials": 0}, "trials", 0),
        ({"mode": "best"}, "mode", "best"),
        ({"world_size": 0, "backend": "spark"}, "world_size", 0),
        ({"name": "a b"}, "name", "a b"),
        ({"training": {"batchsize": 1}}, "training.batchsize", NOT_GIVEN),
        ({"training": 3}, "training", 3),
        ({"search": 3}, "search", 3),
        ({"space": {"x": {"type": "uniform", "low": 2, "high": 1}}}, "space.x", NOT_GIVEN),
        ({"data": None}, "data", NOT_GIVEN),
        ({"method": "wonder"}, "search.method", "wonder"),
    ],
)
def test_tune_names_the_wrong_argument(
    folder: Path, changes: dict[str, Any], key: str, value: object
) -> None:
    error = refusal(folder, changes)
    assert error.key.startswith(key)
    assert value is NOT_GIVEN or error.value == value


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"search": {"max_resource": 9}}, ["max_resource is 3", "9"]),
        ({"num_trials": 3}, ["'num_trials'", "'trials'"]),
        ({"study_dir": "x"}, ["study_dir", "storage"]),
        ({"zzz": 1}, ["name, storage, seed"]),
        ({"data": pd.DataFrame({"x": range(999)})}, ["label"]),
    ],
)
def test_tune_names_the_right_argument(folder: Path, changes: dict[str, Any], named: list[str]) -> None:
    message = str(refusal(folder, changes))
    assert all(word in message for word in named)


def square(ctx: Any) -> None:
    state = {"weight": torch.tensor(float(ctx.params["x"]))}
    ctx.report({"loss": ctx.params["x"] ** 2}, resource=ctx.resource.stop, checkpoint=state)


LINE = {"x": {"type": "uniform", "low": -1, "high": 1}}


def test_tune_of_a_function_needs_few_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = tune(square, LINE, metric="loss", mode="min", trials=3, backend="inline")
    assert result.storage.url == str(tmp_path / "studies/square")
    assert result.config.name == "square"
    assert (tmp_path / "studies/mlflow.db").exists()
    assert result.best_model()["weight"] == pytest.approx(result.best_params["x"])
    assert json.loads(json.dumps(result.summary()))["trials"]


@pytest.mark.parametrize("kind", ["hyperopt", "Space", "file"])
def test_tune_accepts_all_forms_of_spaces_and_tasks(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"hyperopt": {"x": hp.uniform("x", -1, 1)}, "Space": Space.from_config(LINE)}.get(kind, LINE)
    monkeypatch.chdir(folder)
    Path("mine_by_file.py").write_text("def train(ctx):\n    return {'loss': ctx.params['x'], 'size': 1.0}")
    result = tune(
        "mine_by_file.py:train" if kind == "file" else lambda ctx: {"loss": ctx.params["x"], "size": 1.0},
        space,
        metric="loss",
        mode="min",
        trials=2,
        storage=f"by-{kind}",
        backend="inline",
        objective={"also": {"size": "min"}},
        search={"enqueue": [{"x": 0.25}]},
    )
    assert result.config.name == ("train" if kind == "file" else "lambda")
    assert result.study.trials[0].params == {"x": 0.25}
    assert result.trials["pareto_front"].any()
    assert result.plot.pareto_front().data


def test_tune_warns_of_changed_code_in_the_same_storage(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a notebook in which a cell is changed and run again."""

    def run(source: str) -> None:
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(source, names)
        storage = folder / "code"
        tune(names["f"], LINE, metric="loss", mode="min", trials=1, storage=storage, backend="inline")

    run("def f(ctx):\n    return {'loss': 1.0}")
    run("\n# moved, and with a remark\ndef f(ctx):\n    return {'loss': 1.0}")
    assert "code" not in caplog.text
    run("def f(ctx):\n    return {'loss': 2.0}")
    (record,) = [record for record in caplog.records if "code of the task has changed" in record.getMessage()]
    assert record.levelname == "WARNING"


def test_function_without_a_checkpoint_has_no_model(folder: Path) -> None:
    told: list[str] = []

    class Ends(Callback):
        def on_study_end(self, study: Any) -> None:
            told.append(study.stopped_by)

    result = tune(
        lambda ctx: {"loss": ctx.params["x"]},
        LINE,
        metric="loss",
        mode="min",
        budget={"resource": 18},
        storage=folder / "lambda",
        backend="inline",
        callbacks=[Ends()],
    )
    assert result.config.name == "lambda"
    assert told == ["resource"]
    with pytest.raises(CheckpointError, match=r"ctx\.report\(metrics, checkpoint="):
        result.best_model()


def test_tune_raises_if_every_trial_fails(folder: Path) -> None:
    def fail(ctx: Any) -> None:
        raise ValueError("mine")

    with pytest.raises(NoTrialSucceeded, match="mine"):
        tune(fail, LINE, metric="loss", mode="min", trials=2, storage=folder / "fail", backend="inline")
    study = load_study(folder / "fail")
    assert set(study.trials["state"]) == {"failed"}
    with pytest.raises(NoTrialSucceeded, match="no trial has succeeded yet"):
        print(study.best_params)
    assert "no trial has succeeded yet" in study._repr_html_()


@given(st.text())
def test_tune_derives_the_study_name_from_any_task_name(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", _name_of(text))
