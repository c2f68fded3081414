import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spark_hpo.errors import TrackingError, TrackingOutage
from spark_hpo.objective import Limit, Mode, Objective
from spark_hpo.tracking import model_registry as registry
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.model_files import ModelFiles
from spark_hpo.tracking.model_registry import RegisteredModel, TestResult, register_model

LOADER = """
from pathlib import Path

class Model:
    def __init__(self, bias):
        self.bias = bias

    def predict(self, frame):
        return frame["x"] * 2.0 + self.bias

def _load_pyfunc(path):
    return Model(float(Path(path, "bias.txt").read_text()))
"""
Open = Callable[..., MlflowTracker]
Evaluate = Callable[[Path], Mapping[str, float]]


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "tiny_loader.py").write_text(LOADER)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "bias.txt").write_text("1.5")
    return ModelFiles(
        model_dir=tmp_path / "model",
        loader_module="tiny_loader",
        input_example=pd.DataFrame({"x": [1.0, 2.0]}),
        predict=lambda frame: frame["x"] * 2.0 + 1.5,
        pip_requirements=["pandas"],
        code_paths=[tmp_path / "code" / "tiny_loader.py"],
    )


def register(
    tracker: MlflowTracker,
    files: ModelFiles,
    trial_id: int,
    accuracy: float,
    fingerprint: str = "rows-1",
    name: str | None = "digits",
    evaluate: Evaluate | None = None,
    promote: bool = True,
) -> RegisteredModel:
    return register_model(
        tracker,
        files,
        trial_id=trial_id,
        resource=9,
        test=TestResult(metrics={"accuracy": accuracy}, fingerprint=fingerprint),
        name=name,
        promote=promote,
        evaluate_champion=evaluate,
    )


def champion(tracker: MlflowTracker) -> str:
    return str(tracker.client.get_model_version_by_alias("digits", "champion").version)


def test_register_makes_the_first_model_champion(open_tracker: Open, files: ModelFiles) -> None:
    tracker = open_tracker()
    assert register(tracker, files, 1, 0.9) == RegisteredModel(
        name="digits", version="1", uri="models:/digits/1", is_champion=True, is_best=True
    )
    assert champion(tracker) == "1"
    version = tracker.client.get_model_version("digits", "1")
    assert version.tags["spark_hpo.test.accuracy"] == "0.9"
    assert version.tags["spark_hpo.test_fingerprint"] == "rows-1"
    assert version.tags["spark_hpo.study_id"] == "study-1"
    assert version.run_id == tracker.run_id


def test_register_moves_the_alias_only_to_a_better_model(open_tracker: Open, files: ModelFiles) -> None:
    tracker = open_tracker()
    for trial_id, accuracy, expected in [(1, 0.9, "1"), (2, 0.8, "1"), (3, 0.9, "1"), (4, 0.95, "4")]:
        result = register(tracker, files, trial_id, accuracy)
        assert result.is_champion is (expected == str(trial_id))
        assert champion(tracker) == expected


def test_champion_that_keeps_a_limit_is_not_replaced_by_a_model_that_breaks_it(
    open_tracker: Open, files: ModelFiles
) -> None:
    tracker = open_tracker()
    limited = Objective(metric="error", mode=Mode.MIN, limits=(Limit(metric="latency", at_most=10.0),))
    tracker._store.card = replace(tracker.card, objective=limited)
    results = [(1, 2.5e9, 9.0, "1"), (2, 1.0, 11.0, "1"), (3, 2.4e9, 10.0, "3"), (4, 2.4e9, 1.0, "3")]
    for trial_id, error, latency, expected in results:
        test = TestResult(metrics={"error": error, "latency": latency}, fingerprint="rows-1")
        register_model(tracker, files, trial_id=trial_id, resource=9, test=test, name="digits")
        assert champion(tracker) == expected


def test_register_without_promotion_compares_and_keeps_the_alias(
    open_tracker: Open, files: ModelFiles
) -> None:
    tracker = open_tracker()
    first = register(tracker, files, 1, 0.9, promote=False)
    assert (first.is_champion, first.is_best) == (False, True), "there is no champion that it could not beat"
    with pytest.raises(Exception, match="champion"):
        champion(tracker)
    assert register(tracker, files, 1, 0.9).is_champion, "the same call, with promotion, promotes it"
    for trial_id, accuracy, is_best in [(2, 0.8, False), (3, 0.9, False), (4, 0.95, True)]:
        result = register(tracker, files, trial_id, accuracy, promote=False)
        assert (result.is_champion, result.is_best) == (False, is_best)
        assert champion(tracker) == "1"
    assert register(tracker, files, 1, 0.9, promote=False).is_best, "the champion itself"
    promoted = register(tracker, files, 4, 0.95)
    assert (promoted.version, promoted.is_champion, champion(tracker)) == ("4", True, "4")


def test_register_finds_its_version_where_a_search_omits_tags(
    open_tracker: Open, files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unity Catalog's client returns versions of a class of its own, whose tags are an error."""
    from mlflow.entities.model_registry.model_version_search import ModelVersionSearch
    from mlflow.store.entities import PagedList

    tracker = open_tracker()
    real = tracker.client.search_model_versions

    def search(*args: Any, **kwargs: Any) -> Any:
        page = real(*args, **kwargs)
        found = [ModelVersionSearch(v.name, v.version, v.creation_timestamp, run_id=v.run_id) for v in page]
        return PagedList(found, page.token)

    monkeypatch.setattr(tracker.client, "search_model_versions", search)
    assert register(tracker, files, 1, 0.9).version == "1"
    assert register(tracker, files, 2, 0.8).version == "2"
    assert register(tracker, files, 1, 0.9).version == "1"
    assert register(tracker, files, 2, 0.8).version == "2"
    assert len(real("name = 'digits'")) == 2


def test_register_looks_at_the_versions_of_its_own_run_alone(
    open_tracker: Open, files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nightly study must not become slower with each version that earlier ones have registered."""
    tracker, client = open_tracker(), open_tracker("study-0").client
    client.create_registered_model("digits")
    source = client.get_experiment_by_name("tests").artifact_location
    for _ in range(30):
        client.create_model_version("digits", source=source, run_id=open_tracker("study-0").run_id)
    listed = []
    real = tracker.client.search_model_versions

    def search(*args: Any, **kwargs: Any) -> Any:
        page = real(*args, **kwargs)
        listed.extend(page)
        return page

    monkeypatch.setattr(tracker.client, "search_model_versions", search)
    assert register(tracker, files, 1, 0.9).version == "31"
    assert register(tracker, files, 1, 0.9).version == "31"
    assert [version.version for version in listed] == [31]


def test_champion_of_another_test_split_is_evaluated_on_ours(open_tracker: Open, files: ModelFiles) -> None:
    tracker = open_tracker()
    register(tracker, files, 1, 0.99)
    seen: list[str] = []

    def evaluate(model_dir: Path) -> Mapping[str, float]:
        seen.append((model_dir / "bias.txt").read_text())
        return {"accuracy": 0.7}

    assert register(tracker, files, 2, 0.8, fingerprint="rows-2", evaluate=evaluate).is_champion
    assert seen == ["1.5"]


@pytest.mark.parametrize("metrics", [{}, {"accuracy": float("nan")}, None])
def test_champion_that_cannot_be_evaluated_stays(
    open_tracker: Open,
    files: ModelFiles,
    caplog: pytest.LogCaptureFixture,
    metrics: dict[str, float] | None,
) -> None:
    tracker = open_tracker()
    register(tracker, files, 1, 0.5)

    def evaluate(model_dir: Path) -> Mapping[str, float]:
        if metrics is None:
            raise RuntimeError("other columns")
        return metrics

    assert not register(tracker, files, 2, 0.8, fingerprint="rows-2", evaluate=evaluate).is_champion
    assert champion(tracker) == "1"
    assert "stays champion" in caplog.text


def test_champion_of_another_test_split_stays_without_an_evaluator(
    open_tracker: Open, files: ModelFiles, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker()
    register(tracker, files, 1, 0.5)
    assert not register(tracker, files, 2, 0.8, fingerprint="rows-2").is_champion
    assert "stays champion" in caplog.text


def test_register_is_idempotent(open_tracker: Open, files: ModelFiles) -> None:
    first = register(open_tracker(), files, 1, 0.9)
    assert register(open_tracker(), files, 1, 0.9) == first
    assert len(open_tracker().client.search_model_versions("name = 'digits'")) == 1


@pytest.mark.parametrize(
    "call", ["finalize_logged_model", "create_model_version", "set_registered_model_alias"]
)
@pytest.mark.parametrize("is_lost_reply", [False, True])
def test_register_after_a_crash_leaves_one_model(
    open_tracker: Open, files: ModelFiles, monkeypatch: pytest.MonkeyPatch, call: str, is_lost_reply: bool
) -> None:
    tracker = open_tracker()
    real = getattr(tracker.client, call)

    def fail(*args: Any, **kwargs: Any) -> None:
        if is_lost_reply:
            real(*args, **kwargs)
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, call, fail)
        patch.setattr(registry, "_PAUSES_S", ())
        with pytest.raises(TrackingOutage, match="gone"):
            register(tracker, files, 1, 0.9)
    assert register(tracker, files, 1, 0.9).is_champion
    assert len(tracker.client.search_model_versions("name = 'digits'")) == 1
    assert len(tracker.client.search_logged_models([tracker.experiment_id])) == 1


@pytest.mark.parametrize(
    "call",
    [
        "create_logged_model",
        "log_outputs",
        "create_registered_model",
        "create_model_version",
        "set_registered_model_alias",
    ],
)
def test_register_after_a_lost_reply_leaves_one_model(
    open_tracker: Open, files: ModelFiles, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    tracker = open_tracker()
    real = getattr(tracker.client, call)
    calls = []

    def lose_the_first(*args: Any, **kwargs: Any) -> Any:
        calls.append(call)
        done = real(*args, **kwargs)
        if len(calls) == 1:
            raise ConnectionError("gone")
        return done

    monkeypatch.setattr(tracker.client, call, lose_the_first)
    monkeypatch.setattr(registry, "_PAUSES_S", (0.0,))
    assert register(tracker, files, 1, 0.9).is_champion
    assert calls
    assert len(tracker.client.search_model_versions("name = 'digits'")) == 1
    assert len(tracker.client.search_logged_models([tracker.experiment_id])) == 1


def test_register_does_not_retry_an_error_of_the_model(open_tracker: Open, files: ModelFiles) -> None:
    def broken(frame: pd.DataFrame) -> None:
        raise ValueError("no such column")

    with pytest.raises(TrackingError, match="no such column") as caught:
        register(open_tracker(), replace(files, predict=broken), 1, 0.9)
    assert not isinstance(caught.value, TrackingOutage)


def test_version_has_the_parameters_and_metrics_of_its_trial(open_tracker: Open, files: ModelFiles) -> None:
    tracker = open_tracker()
    many = {f"spark_hpo.param.{i}": str(i) for i in range(60)}
    tags = {"spark_hpo.validation.accuracy": "0.9", "spark_hpo.trial_id": "not ours", **many}
    register_model(
        tracker,
        files,
        trial_id=7,
        resource=9,
        test=TestResult(metrics={"accuracy": 0.8}, fingerprint="rows-1"),
        name="digits",
        tags=tags,
        description="Study digits.",
    )
    version = tracker.client.get_model_version("digits", "1")
    assert version.description == "Study digits."
    assert version.tags["spark_hpo.trial_id"] == "7"
    assert version.tags["spark_hpo.validation.accuracy"] == "0.9"
    assert version.tags["spark_hpo.param.0"] == "0"
    assert len(version.tags) == 50  # what Unity Catalog takes


def test_register_without_a_name_only_logs_the_model(open_tracker: Open, files: ModelFiles) -> None:
    tracker = open_tracker()
    result = register(tracker, files, 1, 0.9, name=None)
    assert result.version is None
    assert result.uri.startswith("models:/m-")
    assert not tracker.client.search_registered_models()


def test_champion_loads_in_a_new_process(
    open_tracker: Open, files: ModelFiles, uri: str, tmp_path: Path
) -> None:
    register(open_tracker(), files, 1, 0.9)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "import mlflow, pandas as pd; model = mlflow.pyfunc.load_model('models:/digits@champion'); "
        "print(model.predict(pd.DataFrame({'x': [1.0, 3.0]})).tolist(), "
        "model.metadata.signature is not None, model.input_example is not None)"
    )
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[3.5, 7.5] True True", done.stderr
    assert {path.name for path in elsewhere.iterdir()} <= {"mlruns"}, "which MLflow 3.0 makes"


def test_registered_model_accepts_narrow_and_wide_numbers(
    open_tracker: Open, files: ModelFiles, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    narrow = pd.DataFrame({"x": np.float32([1.0, 2.0]), "n": np.int8([1, 2])})
    register(open_tracker(), replace(files, input_example=narrow), 1, 0.9)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    for frame in (narrow, narrow.astype({"x": "float64", "n": "int64"})):
        assert model.predict(frame).tolist() == [3.5, 5.5]


def test_register_leaves_working_directory_and_environment_unchanged(
    open_tracker: Open, files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    before = dict(os.environ)
    tracker = open_tracker()
    register(tracker, files, 1, 0.9)
    register(tracker, files, 2, 0.95, fingerprint="rows-2", evaluate=lambda path: {"accuracy": 0.1})
    tracker.close(10)
    assert {path.name for path in elsewhere.iterdir()} <= {"mlruns"}, "which MLflow 3.0 makes"
    assert {name for name in os.environ if name.startswith("MLFLOW")} == {
        name for name in before if name.startswith("MLFLOW")
    }
