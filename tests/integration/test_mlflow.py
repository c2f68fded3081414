"""The projection of studies to MLflow: a real database, a real server, and their failures."""

import logging
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy

from spark_hpo.errors import TrackingError
from spark_hpo.objective import Mode, Objective
from spark_hpo.tracking.connection import connect
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.model_files import ModelFiles
from spark_hpo.tracking.model_registry import TestResult, register_model
from spark_hpo.tracking.study_runs import Outcome, RunStatus, StudyCard, StudyRuns
from spark_hpo.trial import Failure, FailureKind, Measurement, Trial, TrialState
from tests.support.mlflow_database import write_database
from tests.support.mlflow_server import Server, free_port, runs

CARD = StudyCard(
    study_id="study-1",
    name="digits",
    objective=Objective(metric="accuracy", mode=Mode.MAX),
    config={"search": {"sampler": "tpe"}, "tracking": {"uri": "http://ann:canary@host"}},
    space={"lr": {"loguniform": [0.001, 1]}},
    git_commit="0123abc",
)


class FakeJournal:
    """The part of a journal that a tracker reads."""

    def __init__(self) -> None:
        self.sequence = 0
        self.trials: dict[int, Trial] = {}

    def put(self, trial_id: int, state: TrialState, epochs: int, **more: Any) -> Trial:
        self.sequence += 1
        curve = tuple(
            Measurement(
                resource=epoch,
                metrics={"accuracy": 0.1 * epoch + 0.01 * trial_id, "loss": 1 / epoch},
                time=1_000_000.25 + epoch,
                seconds=2.0,
                rows=300,
            )
            for epoch in range(1, epochs + 1)
        )
        self.trials[trial_id] = Trial(
            trial_id=trial_id,
            params={"lr": 0.1 * trial_id, "optimizer": {"name": "sgd"}},
            state=state,
            bracket=0,
            rung=0,
            resource=epochs,
            curve=curve,
            seconds=2.5 * epochs,
            started_at=1_000_000.0,
            ended_at=1_000_001.0 + epochs if epochs else None,
            changed_at=self.sequence,
            **more,
        )
        return self.trials[trial_id]

    def changed_since(self, sequence: int) -> list[Trial]:
        return [trial for _, trial in sorted(self.trials.items()) if trial.changed_at > sequence]


FAILURE = Failure(kind=FailureKind.TRIAL, message="loss is nan", traceback="Traceback: ...\nValueError: nan")


@pytest.fixture
def journal() -> FakeJournal:
    journal = FakeJournal()
    journal.put(0, TrialState.COMPLETED, 3)
    journal.put(1, TrialState.PAUSED, 1)
    journal.put(2, TrialState.FAILED, 1, failure=FAILURE)
    journal.put(3, TrialState.RUNNING, 0)
    return journal


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return write_database(tmp_path)


def open_store(uri: str, card: StudyCard = CARD) -> StudyRuns:
    return connect(uri, "tests", card, registry_uri=None, artifact_location=None)


# A database -----------------------------------------------------------------------------------------------


def test_trial_is_a_child_run_with_its_curve(uri: str, journal: FakeJournal) -> None:
    tracker = MlflowTracker(uri, "tests", CARD)
    tracker.sync(journal)
    assert tracker.flush(60)
    found = runs(tracker)
    assert found.keys() == {"digits", "trial 0", "trial 1", "trial 2", "trial 3"}
    trial = found["trial 0"]
    assert trial["params"] == {"lr": "0.0", "optimizer.name": "sgd"}
    assert [(step, at) for step, _, at in trial["metrics"]["accuracy"]] == [
        (1, 1_000_001_250),
        (2, 1_000_002_250),
        (3, 1_000_003_250),
    ]
    assert trial["metrics"]["rows_per_second"][0][1] == 150
    assert trial["tags"]["spark_hpo.state"] == "completed"
    assert {name: run["status"] for name, run in found.items()} == {
        "digits": "RUNNING",
        "trial 0": "FINISHED",
        "trial 1": "FINISHED",
        "trial 2": "FAILED",
        "trial 3": "RUNNING",
    }
    assert found["trial 2"]["artifacts"] == ["traceback.txt"]
    assert found["trial 2"]["tags"]["spark_hpo.failure"] == "loss is nan"
    tracker.close(10)


def test_study_is_a_parent_run_without_secrets(uri: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(uri, "tests", CARD)
    study = runs(tracker)["digits"]
    assert study["params"] == {"search.sampler": "tpe", "tracking.uri": "http://***@host"}
    assert study["artifacts"] == ["config.yaml", "space.yaml"]
    run = tracker.client.get_run(tracker.run_id)
    assert run.data.tags["mlflow.source.git.commit"] == "0123abc"
    tracker.close(10)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"canary" in file.read_bytes()]


def test_experiment_shows_the_metric_of_its_first_study(uri: str) -> None:
    loss = replace(CARD, study_id="another", objective=Objective(metric="loss", mode=Mode.MIN))
    for card in (CARD, loss):
        tracker = MlflowTracker(uri, "tests", card)
        tags = tracker.client.get_experiment(tracker.experiment_id).tags
        assert tags["mlflow.experiment.primaryMetric.name"] == "accuracy"
        assert tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "True"
        assert tags["mlflow.experimentKind"] == "custom_model_development"
        tracker.close(10)


def test_studies_may_describe_their_experiment_at_the_same_moment(uri: str, tmp_path: Path) -> None:
    first_words: list[str] = []

    @sqlalchemy.event.listens_for(sqlalchemy.orm.Session, "before_flush")
    def another_study(session: Any, *_: Any) -> None:
        for row in session.new:
            if row.__tablename__ == "experiment_tags":
                first_words.append(row.key)
                with sqlite3.connect(tmp_path / "mlflow.db") as database:
                    database.execute(
                        "INSERT INTO experiment_tags (key, value, experiment_id) VALUES (?, 'first', ?)",
                        (row.key, row.experiment_id),
                    )

    try:
        store = open_store(uri)
    finally:
        sqlalchemy.event.remove(sqlalchemy.orm.Session, "before_flush", another_study)
    assert len(first_words) == 3
    tags = store.client.get_experiment(store.experiment_id).tags
    assert tags == dict.fromkeys(first_words, "first")


def test_artifacts_are_stored_beside_the_database(uri: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(uri, "tests", CARD)
    tracker.close(10)
    assert (tmp_path / "mlartifacts" / tracker.run_id / "artifacts" / "config.yaml").is_file()


def test_run_of_a_promoted_trial_is_reopened_and_keeps_its_points(uri: str, journal: FakeJournal) -> None:
    tracker = MlflowTracker(uri, "tests", CARD)
    tracker.sync(journal)
    assert tracker.flush(60)
    journal.put(1, TrialState.RUNNING, 1)
    tracker.sync(journal)
    assert tracker.flush(60)
    assert runs(tracker)["trial 1"]["status"] == "RUNNING"
    journal.put(1, TrialState.COMPLETED, 3)
    tracker.sync(journal)
    assert tracker.flush(60)
    trial = runs(tracker)["trial 1"]
    assert trial["status"] == "FINISHED"
    assert [step for step, *_ in trial["metrics"]["accuracy"]] == [1, 2, 3]
    tracker.close(10)


def test_study_run_has_the_outcome_of_the_study(uri: str, journal: FakeJournal) -> None:
    tracker = MlflowTracker(uri, "tests", CARD)
    tracker.sync(journal)
    assert tracker.finish(
        RunStatus.KILLED,
        metrics={"best_accuracy": 0.3},
        leaderboard=pd.DataFrame({"trial": [0, 1], "value": [0.3, 0.1]}),
        artifacts={"report.html": "<html></html>"},
    )
    found = runs(tracker)
    assert found["digits"]["status"] == "KILLED"
    assert found["trial 3"]["status"] == "KILLED"
    assert [value for _, value, _ in found["digits"]["metrics"]["best_accuracy"]] == [0.3]
    assert set(found["digits"]["artifacts"]) == {
        "config.yaml",
        "leaderboard.csv",
        "leaderboard.json",
        "report.html",
        "space.yaml",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)  # MLflow reads tables from its global address
        table = tracker.client.load_table(tracker.experiment_id, "leaderboard.json", [tracker.run_id])
    assert list(table["trial"]) == [0, 1]


def test_study_run_describes_its_best_trial(uri: str, journal: FakeJournal) -> None:
    tracker = MlflowTracker(uri, "tests", CARD)
    tracker.sync(journal)
    best = replace(journal.trials[1], metrics={"accuracy": 0.11})
    assert tracker.finish(RunStatus.FINISHED, metrics={}, best=best)
    runs_by_name = {run.info.run_name: run for run in tracker.client.search_runs([tracker.experiment_id])}
    tags = runs_by_name["digits"].data.tags
    assert {key: tags[key] for key in ("best.trial", "best.lr", "best.optimizer.name")} == {
        "best.trial": "1",
        "best.lr": "0.1",
        "best.optimizer.name": "sgd",
    }
    run_id = runs_by_name["trial 1"].info.run_id
    text = tags["mlflow.note.content"]
    assert f"[trial 1](#/experiments/{tracker.experiment_id}/runs/{run_id}), accuracy 0.11" in text
    assert "| optimizer.name | sgd |" in text


def test_description_of_the_user_is_kept_and_empty_settings_are_no_parameters(
    uri: str, journal: FakeJournal
) -> None:
    config = {"patience": None, "spark": {}, "files": [], "seed": 0}
    card = replace(CARD, config=config, tags={"mlflow.note.content": "ours"})
    tracker = MlflowTracker(uri, "tests", card)
    tracker.sync(journal)
    best = replace(journal.trials[1], metrics={"accuracy": 0.11})
    assert tracker.finish(RunStatus.FINISHED, metrics={}, best=best)
    data = tracker.client.get_run(tracker.run_id).data
    assert data.tags["mlflow.note.content"] == "ours"
    assert data.tags["best.trial"] == "1"
    assert data.params == {"seed": "0"}


def test_runs_on_the_pareto_front_are_tagged(uri: str, journal: FakeJournal) -> None:
    def tagged(front: set[int] | None) -> dict[str, str]:
        tracker = MlflowTracker(uri, "tests", CARD)
        tracker.sync(journal)
        assert tracker.finish(RunStatus.FINISHED, metrics={}, front=front)
        tags = {name: run["tags"] for name, run in runs(tracker).items()}
        return {
            name: of_run["spark_hpo.pareto_front"]
            for name, of_run in tags.items()
            if "spark_hpo.pareto_front" in of_run
        }

    assert tagged(None) == {}
    assert tagged({0, 1}) == {"trial 0": "true", "trial 1": "true"}
    assert tagged({1, 3}) == {"trial 0": "false", "trial 1": "true", "trial 3": "true"}


def test_resumed_study_keeps_its_runs(uri: str, journal: FakeJournal) -> None:
    first = MlflowTracker(uri, "tests", CARD)
    first.sync(journal)
    assert first.finish(RunStatus.KILLED, metrics={"best_accuracy": 0.3})
    before = runs(first)

    second = MlflowTracker(uri, "tests", CARD)
    assert second.info() == first.info()
    assert runs(second)["digits"]["status"] == "RUNNING"
    second.sync(journal)
    assert second.finish(RunStatus.KILLED, metrics={"best_accuracy": 0.3})
    assert runs(second) == before


def test_two_studies_share_an_experiment_but_no_runs(uri: str, journal: FakeJournal) -> None:
    first = open_store(uri)
    second = open_store(uri, StudyCard(study_id="study-2", name="other", objective=CARD.objective))
    assert first.experiment_id == second.experiment_id
    assert first.run_id != second.run_id


class Lossy:
    """A client whose `n`-th write fails: before the write, or after it, so that only the reply is lost."""

    def __init__(self, client: Any, n: int, *, is_lost_reply: bool) -> None:
        self._client, self._left, self._is_lost_reply = client, n, is_lost_reply

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)
        if not name.startswith(("create_", "log_", "set_", "update_")):
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                if self._is_lost_reply:
                    real(*args, **kwargs)
                raise ConnectionError("gone")
            return real(*args, **kwargs)

        return call


def write_all(store: StudyRuns, journal: FakeJournal, outcome: Outcome) -> None:
    for trial in journal.trials.values():
        store.write_trial(trial)
    store.write_outcome(outcome)


@pytest.mark.parametrize("is_lost_reply", [False, True])
def test_tracker_killed_at_any_write_ends_with_the_same_runs(tmp_path: Path, is_lost_reply: bool) -> None:
    journal = FakeJournal()
    journal.put(0, TrialState.COMPLETED, 2)
    journal.put(1, TrialState.FAILED, 1, failure=FAILURE)
    outcome = Outcome(
        status=RunStatus.FINISHED, time=1_000_100.0, metrics={"best": 0.3}, artifacts={"a": "b"}, front={0, 1}
    )

    def fresh(name: str) -> str:
        (tmp_path / name).mkdir()
        return write_database(tmp_path / name)

    whole = open_store(fresh("whole"))
    write_all(whole, journal, outcome)
    expected = runs(whole)

    deaths = 0
    while True:
        place = fresh(str(deaths))
        store = open_store(place)
        store.client = Lossy(store.client, deaths + 1, is_lost_reply=is_lost_reply)
        try:
            write_all(store, journal, outcome)
        except ConnectionError:
            deaths += 1
        else:
            break
        again = open_store(place)  # a new driver
        write_all(again, journal, outcome)
        assert runs(again) == expected
    assert deaths == 12


class Late:
    """A client whose first `create_run` fails, but is executed by the server after the second one."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._late: list[dict[str, Any]] = []
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def create_run(self, experiment_id: str, **settings: Any) -> Any:
        self._calls += 1
        if self._calls == 1:
            self._late.append(settings)
            raise ConnectionError("no answer in time")
        run = self._client.create_run(experiment_id, **settings)
        while self._late:
            self._client.create_run(experiment_id, **self._late.pop())
        return run


def test_duplicate_run_of_a_slow_server_is_deleted(uri: str, journal: FakeJournal) -> None:
    tracker = MlflowTracker(uri, "tests", CARD)
    tracker._store.client = Late(tracker.client)
    tracker.sync(journal)
    assert tracker.wait(60) == 0
    names = [run.info.run_name for run in tracker.client.search_runs([tracker.experiment_id])]
    assert names.count("trial 0") == 2
    assert tracker.finish(RunStatus.FINISHED, metrics={})
    found = runs(tracker)  # none of them twice
    assert len(found) == 5
    assert [step for step, *_ in found["trial 0"]["metrics"]["accuracy"]] == [1, 2, 3]


def test_study_has_one_run_if_a_slow_server_creates_it_twice(uri: str, journal: FakeJournal) -> None:
    first = open_store(uri)
    write_all(first, journal, Outcome(status=RunStatus.FINISHED, time=1_000_100.0))
    expected = runs(first)
    first.client.create_run(first.experiment_id, start_time=1, tags=first._tags(), run_name=CARD.name)
    second = open_store(uri)
    write_all(second, journal, Outcome(status=RunStatus.FINISHED, time=1_000_100.0))
    assert second.run_id == first.run_id
    assert runs(second) == expected


def test_trial_that_mlflow_refuses_does_not_stop_others(
    uri: str, journal: FakeJournal, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MlflowTracker(uri, "tests", CARD)
    tracker.sync(journal)
    assert tracker.flush(60)
    [run] = [
        run for run in tracker.client.search_runs([tracker.experiment_id]) if run.info.run_name == "trial 1"
    ]
    tracker.client.delete_run(run.info.run_id)  # somebody tidies up
    journal.put(1, TrialState.COMPLETED, 3)
    journal.put(4, TrialState.COMPLETED, 1)
    tracker.sync(journal)
    assert not tracker.flush(60)
    assert "refuses trial 1" in caplog.text
    assert runs(tracker)["trial 4"]["status"] == "FINISHED"
    tracker.close(10)


def test_first_start_logs_nothing(tmp_path: Path) -> None:
    code = (
        "from spark_hpo.tracking.mlflow import *; from spark_hpo.tracking.study_runs import *; "
        "from spark_hpo.trial import *; from spark_hpo.objective import *; "
        "import logging; logging.basicConfig(level='INFO'); "
        "card = StudyCard(study_id='s', name='n', objective=Objective(metric='m', mode=Mode.MIN)); "
        "t = MlflowTracker('sqlite:///deep/mlflow.db', 'e', card); t.finish(RunStatus.FINISHED, metrics={})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Errors at the start ----------------------------------------------------------------------------------------


def test_unreachable_server_is_an_error_within_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        MlflowTracker(f"http://ann:s3cret@127.0.0.1:{free_port()}", "tests", CARD)
    assert time.monotonic() - began < 10
    assert "s3cret" not in str(caught.value)
    assert "Start the server" in str(caught.value)
    assert caught.value.__suppress_context__  # a traceback shows no foreign text either


def test_silent_server_is_an_error_within_ten_seconds() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # connects, and never answers
        began = time.monotonic()
        with pytest.raises(TrackingError):
            MlflowTracker(f"http://127.0.0.1:{listener.getsockname()[1]}", "tests", CARD)
        assert time.monotonic() - began < 11


def test_deleted_experiment_is_named(uri: str) -> None:
    store = open_store(uri)
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(TrackingError, match="'tests', which is deleted"):
        open_store(uri)


def test_file_that_is_not_a_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database " * 1000)
    with pytest.raises(TrackingError, match=r"mlflow\.db"):
        MlflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "tests", CARD)


# A server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests, each with an experiment of its own."""
    folder = tmp_path_factory.mktemp("served")
    server = Server(write_database(folder), folder / "artifacts")
    server.start()
    yield server
    server.kill()


def test_server_gets_everything_once_after_an_outage(
    server: Server, journal: FakeJournal, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "spark_hpo")
    tracker = MlflowTracker(server.uri, "outage", CARD)
    tracker.sync(journal)
    assert tracker.flush(60)

    server.kill()
    for trial_id in range(4, 8):
        journal.put(trial_id, TrialState.COMPLETED, 2)
        began = time.monotonic()
        tracker.sync(journal)
        assert time.monotonic() - began < 0.5
    assert not tracker.flush(1)
    assert caplog.text.count("does not answer") == 1
    assert "rerun the same command with --sync" in caplog.text

    server.start()
    journal.put(3, TrialState.COMPLETED, 3)
    tracker.sync(journal)
    assert tracker.finish(RunStatus.FINISHED, metrics={"best_accuracy": 0.3}, artifacts={"report.html": "x"})
    found = runs(tracker)
    assert len(found) == 9
    for trial in journal.trials.values():
        metrics = found[f"trial {trial.trial_id}"]["metrics"]
        assert [step for step, *_ in metrics["accuracy"]] == list(range(1, trial.resource + 1))
    assert found["digits"]["status"] == "FINISHED"
    assert "report.html" in found["digits"]["artifacts"]
    assert capfd.readouterr().out == ""


def test_model_is_registered_through_a_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.txt").write_text("7")
    frame = pd.DataFrame({"x": [1.0]})
    files = ModelFiles(
        model_dir=tmp_path / "model",
        loader_module="a_module_that_is_not_imported_here",
        input_example=frame,
        predict=lambda frame: frame["x"],
        pip_requirements=["pandas"],
    )
    tracker = MlflowTracker(server.uri, "models", CARD)
    assert tracker.finish(RunStatus.FINISHED, metrics={})
    seen: list[str] = []

    def evaluate(model_dir: Path) -> dict[str, float]:
        seen.append((model_dir / "weights.txt").read_text())
        return {"accuracy": 0.5}

    for trial_id in (1, 2):
        test = TestResult(metrics={"accuracy": 0.9}, fingerprint=f"rows-{trial_id}")
        model = register_model(
            tracker, files, trial_id=trial_id, resource=1, test=test, name="m", evaluate_champion=evaluate
        )
        assert (model.version, model.is_champion) == (str(trial_id), True)
    assert seen == ["7"]
    assert list(Path().iterdir()) == []


FLAPS = 6


def test_flapping_server_gets_every_trial_once(server: Server) -> None:
    tracker = MlflowTracker(server.uri, "flapping", CARD)
    journal = FakeJournal()
    stop = threading.Event()

    def flap() -> None:
        # So often while it is written to, and then it answers: how long it takes is the machine's affair.
        for _ in range(FLAPS):
            if stop.wait(0.3):
                return
            server.signal(signal.SIGSTOP)
            stop.wait(0.3)
            server.signal(signal.SIGCONT)

    thread = threading.Thread(target=flap)
    thread.start()
    try:
        for trial_id in range(20):
            journal.put(trial_id, TrialState.COMPLETED, 2)
            tracker.sync(journal)
        assert tracker.flush(60)
    finally:
        stop.set()
        thread.join()
    tracker.close(10)
    found = runs(tracker)
    assert len(found) == 21
    assert all(len(found[f"trial {i}"]["metrics"]["accuracy"]) == 2 for i in range(20))
