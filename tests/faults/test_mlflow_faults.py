"""An MLflow server that fails, hangs or flaps during a study: training never waits, and nothing is lost."""

from __future__ import annotations

import json
import logging
import random
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from spark_hpo.config import StudyConfig, build_config
from spark_hpo.driver.result import Result
from spark_hpo.driver.run import run_study
from spark_hpo.driver.sync import Synced, sync_study
from spark_hpo.errors import TrackingError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study import RunningStudy
from spark_hpo.study.callback import Callback
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.trial import Report, Trial
from tests.faults.cost_table import CostTable
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.mlflow_server import Server, runs
from tests.support.tables import write_clusters
from tests.support.workspace import LIMIT_S, Workspace, wait_for

ACCURACY = Objective(metric="accuracy", mode=Mode.MAX)
TRIALS = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    server = Server(f"sqlite:///{folder}/mlflow.db", folder / "served")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def config(tmp_path: Path, proxy: FaultyProxy) -> StudyConfig:
    write_clusters(tmp_path / "table")
    record: dict[str, Any] = {
        "name": tmp_path.name,
        "study_dir": str(tmp_path / "study"),
        "task": "tabular",
        "data": {"path": str(tmp_path / "table")},
        "objective": {"metric": "accuracy", "mode": "max"},
        "space": {"learning_rate": {"type": "loguniform", "low": 0.01, "high": 0.1}},
        "search": {"method": "asha", "max_resource": 3},
        "budget": {"trials": TRIALS},
        "training": {"batch_size": 16},
        "backend": "inline",
        "mlflow": {"tracking_uri": proxy.uri},
    }
    return build_config(record, place="test")


class OnReport(Callback):
    """Calls a function with the number of reports so far."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self._call = call
        self.count = 0

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self.count += 1
        self._call(self.count)


def run(config: StudyConfig, on_report: Callable[[int], None]) -> Result:
    observer = OnReport(on_report)
    return run_study(config, callbacks=[observer])


def everything_is_there_once(server: Server, config: StudyConfig) -> MlflowClient:
    """Check that MLflow has each run, point and parameter of the journal, and one model."""
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(config.name)
    # Deleted ones too: none may have been made twice and tidied away.
    every_run = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)
    [parent] = [run for run in every_run if "mlflow.parentRunId" not in run.data.tags]
    place = SimpleNamespace(client=client, experiment_id=experiment.experiment_id, run_id=parent.info.run_id)
    found = runs(place)  # type: ignore[arg-type] # it asks for nothing else
    journal = Journal(Storage(config.study_dir), ACCURACY)
    assert len(every_run) == len(found) == len(journal.trials) + 1
    for trial in journal.trials.values():
        there = found[f"trial {trial.trial_id}"]
        assert there["params"] == {"learning_rate": str(trial.params["learning_rate"])}
        assert [(step, value) for step, value, _ in there["metrics"]["accuracy"]] == [
            (point.resource, point.metrics["accuracy"]) for point in trial.curve
        ]
        assert there["status"] == "FINISHED"
        assert there["tags"]["spark_hpo.state"] == str(trial.state)
    study = found[config.name]
    assert study["status"] == "FINISHED"
    assert len(study["metrics"]["best_accuracy"]) == len(study["metrics"]["test_accuracy"]) == 1
    assert {"config.yaml", "leaderboard.json", "report.html"} <= set(study["artifacts"])
    assert len(client.search_logged_models([experiment.experiment_id])) == 1
    [version] = client.search_model_versions(f"name = '{config.name}'")
    assert client.get_model_version_by_alias(config.name, "champion").version == version.version
    return client


def until_it_answers(config: StudyConfig) -> Synced:
    """Registering a model takes more calls than a driver retries."""
    for _ in range(20):
        try:
            return sync_study(config)
        except TrackingError:
            continue
    raise AssertionError("it never answers")


@pytest.mark.parametrize("how", ["hangs", "is slow", "is gone"])
def test_training_never_waits_for_mlflow(
    server: Server, proxy: FaultyProxy, config: StudyConfig, costs: CostTable, how: str
) -> None:
    """Requests are answered after further reports only: a study whose training waited would hang."""
    answered = []

    def on_report(count: int) -> None:
        if count == 1:
            answered.append(proxy.answered)
            proxy.fault = lambda method, path: Fault.REFUSE if how == "is gone" else Fault.HOLD
        if how == "is slow" and count % 4 == 0:
            proxy.allow()
        if count == TRIALS:
            answered.append(proxy.answered)
            proxy.heal()

    result = run(config, on_report)
    # One may have been on its way.
    assert answered[1] - answered[0] <= (TRIALS // 4 if how == "is slow" else 0) + 1
    assert proxy.met, "no request has met the fault"
    assert result.study.progress.run >= TRIALS
    assert result.is_tracked
    assert result.model is not None
    everything_is_there_once(server, config)
    costs.add(f"MLflow {how}")


def test_write_with_a_lost_reply_is_stored_once(
    server: Server, proxy: FaultyProxy, config: StudyConfig, costs: CostTable
) -> None:
    """Return whether this is the first request of its kind."""
    seen: set[tuple[str, str]] = set()

    def drop_the_first(method: str, path: str) -> Fault:
        kind = method, path.partition("?")[0].partition("/artifacts/")[0]
        if kind in seen:
            return Fault.NONE
        seen.add(kind)
        return Fault.DROP_REPLY

    def on_report(count: int) -> None:
        if count == 1:
            proxy.fault = drop_the_first

    run(config, on_report)
    synced = until_it_answers(config)
    dropped = {path.rpartition("/mlflow/")[2] for _, path in proxy.met}
    assert {"runs/create", "runs/log-batch", "runs/update", "logged-models"} <= dropped
    assert {"registered-models/create", "model-versions/create", "registered-models/alias"} <= dropped
    assert synced.is_complete
    everything_is_there_once(server, config)
    costs.add("MLflow's replies are lost")


def test_flapping_server_gets_every_record_once(
    server: Server, proxy: FaultyProxy, config: StudyConfig, costs: CostTable
) -> None:
    chance = random.Random(7)
    kinds = [Fault.REFUSE, Fault.DROP_REPLY, *[Fault.NONE] * 4]

    def on_report(count: int) -> None:
        if count == 1:
            proxy.fault = lambda method, path: chance.choice(kinds)

    run(config, on_report)
    proxy.heal()
    assert sync_study(config).is_complete  # what the driver's own end has met
    assert {fault for fault, _ in proxy.met} == {Fault.REFUSE, Fault.DROP_REPLY}
    everything_is_there_once(server, config)
    costs.add("MLflow flaps")


def test_unreachable_server_costs_a_warning_and_a_sync(
    server: Server,
    proxy: FaultyProxy,
    config: StudyConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(MlflowTracker.finish.__kwdefaults__, "timeout_s", 2.0)

    def on_report(count: int) -> None:
        if count == 2:
            proxy.fault = lambda method, path: Fault.REFUSE

    with caplog.at_level(logging.WARNING, "spark_hpo"):
        result = run(config, on_report)
    assert result.stopped_by == "trials"
    assert result.test["accuracy"] > 0.5
    assert result.model is None
    assert not result.is_tracked
    assert "rerun the same command with --sync" in caplog.text
    assert f"cannot be registered as '{config.name}'" in caplog.text
    with pytest.raises(TrackingError, match="cannot start there"):
        sync_study(config)

    proxy.heal()
    synced = sync_study(config)
    assert synced.is_complete
    assert synced.trials == TRIALS
    assert 1 <= synced.written <= TRIALS
    assert synced.model is not None
    everything_is_there_once(server, config)
    again = sync_study(config)
    assert (again.written, again.model) == (0, synced.model)
    everything_is_there_once(server, config)


def test_command_of_the_warning_completes_the_sync(tmp_path: Path, costs: CostTable) -> None:
    """With a driver process, and a server that is killed."""
    server = Server(f"sqlite:///{tmp_path}/server.db", tmp_path / "served")
    workspace = Workspace(tmp_path)
    settings = [
        "backend=inline",
        "resources.world_size=1",
        "search.max_resource=3",
        f"budget.trials={TRIALS}",
        f"mlflow.tracking_uri={server.uri}",
    ]
    try:
        server.start()
        process = workspace.start(*settings)
        wait_for(lambda: len(workspace.reported()) >= 2, "two reports")
        server.kill()
        assert process.wait(LIMIT_S) == 0, workspace.log[-4000:]
        answer = workspace.answer
        assert answer["model"] is None
        assert answer["mlflow"]["complete"] is False
        [command] = [line for line in workspace.log.splitlines() if line.endswith(" --sync")]

        server.start()
        for written in (True, False):
            assert workspace.popen(shlex.split(command), "sync.txt").wait(LIMIT_S) == 0
            log = (tmp_path / "sync.txt").read_text()
            answer = json.loads(log.splitlines()[-1])
            assert answer["complete"] is True
            assert (answer["written"] > 0) is written
            assert answer["model"]["uri"] == "models:/clusters/1"
            assert "trials" in log.splitlines()[-2]
        client = MlflowClient(server.uri)
        experiment = client.get_experiment_by_name("clusters")
        found = client.search_runs([experiment.experiment_id])
        assert len(found) == TRIALS + 1
        assert {run.info.status for run in found} == {"FINISHED"}
        costs.add("MLflow killed, and still gone at the end")
    finally:
        server.kill()
