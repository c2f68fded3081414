"""TensorBoard reads the curves and parameters that the callback has written, also after a resume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from spark_hpo import Callback, Result, tune
from spark_hpo.callbacks import TensorBoard
from spark_hpo.errors import StudyInterrupted
from spark_hpo.trial import Measurement, Trial, TrialState
from tests.support.interrupting import StopAfter

SPACE = {
    "rate": {"type": "loguniform", "low": 1e-3, "high": 1},
    "optimizer": {
        "type": "choice",
        "options": [
            {"name": "sgd", "momentum": {"type": "uniform", "low": 0, "high": 1}},
            {"name": "adam", "betas": [0.9, 0.99]},
        ],
    },
    "clip": {"type": "choice", "options": [None, 1.0]},
}


def train(ctx: Any) -> None:
    if ctx.params["rate"] > 0.1:
        raise ValueError("diverged")
    for epoch in range(*ctx.resource):
        ctx.report({"loss": ctx.params["rate"] / (epoch + 1), "epoch": epoch}, checkpoint={})
    if ctx.is_evaluation:
        ctx.report({"loss": 0.0, "epoch": 0})


def run(folder: Path, uri: str, *callbacks: Callback) -> Result:
    return tune(
        train,
        SPACE,
        metric="loss",
        mode="min",
        trials=9,
        method="hyperband",
        storage=folder / "study",
        backend="inline",
        callbacks=callbacks,
        mlflow={"tracking_uri": uri},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mlflow_uri: str) -> Path:
    """A study with three drivers: the first without the callback, the second interrupted."""
    folder = tmp_path_factory.mktemp("tensorboard")
    with pytest.raises(StudyInterrupted):
        run(folder, mlflow_uri, StopAfter(4))
    assert not (folder / "tb").exists()
    with pytest.raises(StudyInterrupted):
        run(folder, mlflow_uri, TensorBoard(folder / "tb"), StopAfter(4))
    run(folder, mlflow_uri, TensorBoard(folder / "tb"))
    return folder


@pytest.fixture(scope="module")
def result(folder: Path, mlflow_uri: str) -> Result:
    return run(folder, mlflow_uri, TensorBoard(folder / "tb"))  # at its end already


def runs(folder: Path) -> dict[int, EventAccumulator]:
    return {
        int(run.name.removeprefix("trial-")): EventAccumulator(str(run)).Reload()
        for run in (folder / "tb").iterdir()
    }


def test_event_files_of_one_second_are_read_in_order(tmp_path: Path) -> None:
    trial = Trial(trial_id=0, params={"rate": 0.1}, state=TrialState.RUNNING, bracket=0, rung=0)
    for resource in range(1, 13):  # SummaryWriter would name the ninth after the tenth
        measured = Measurement(resource=resource, metrics={"loss": 0.5}, time=0.0, seconds=1.0, rows=1)
        TensorBoard(tmp_path)._write(trial, [measured], is_new=resource == 1, has_ended=False)
    events = EventAccumulator(str(tmp_path / "trial-000000")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [*range(1, 13)]


def test_each_trial_is_a_run_with_its_curves(folder: Path, result: Result) -> None:
    trials = result.study.trials
    assert runs(folder).keys() == trials.keys()
    for trial_id, events in runs(folder).items():
        curve = trials[trial_id].curve
        tags = events.Tags()["scalars"]
        assert set(tags) == ({"loss", "epoch"} if curve else set())
        for tag in tags:
            points = [(event.step, event.value) for event in events.Scalars(tag)]
            assert points == [(m.resource, pytest.approx(m.metrics[tag])) for m in curve]
            assert [e.wall_time for e in events.Scalars(tag)] == [m.time for m in curve]
    assert len({trial.resource for trial in trials.values()}) > 1, "some were stopped at a lower rung"


def test_resume_writes_no_event_twice(folder: Path, result: Result, mlflow_uri: str) -> None:
    for trial_id in result.study.trials:
        files = list((folder / f"tb/trial-{trial_id:06d}").iterdir())
        tags = Counter(
            value.tag
            for file in files
            for event in _events(file)
            for value in event.summary.value
            if value.tag.startswith("_hparams_")
        )
        assert tags == {"_hparams_/session_start_info": 1, "_hparams_/session_end_info": 1}
    before = {file: file.stat().st_size for file in (folder / "tb").rglob("*") if file.is_file()}
    run(folder, mlflow_uri, TensorBoard(folder / "tb"))
    assert {file: file.stat().st_size for file in (folder / "tb").rglob("*") if file.is_file()} == before


def _events(file: Path) -> Any:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return EventFileLoader(str(file)).Load()


def test_hparams_page_has_all_parameters_and_last_metrics(folder: Path, result: Result) -> None:
    """Reads them from the plugin, as its page does."""
    groups = _hparams_page(folder / "tb")
    trials = result.study.trials
    assert groups.keys() == trials.keys()
    for trial_id, group in groups.items():
        trial = trials[trial_id]
        shown = {name: _value(value) for name, value in group.hparams.items() if _value(value) is not None}
        optimizer = trial.params["optimizer"]
        expected = {"rate": trial.params["rate"], "optimizer.name": optimizer["name"]}
        if optimizer["name"] == "sgd":
            expected["optimizer.momentum"] = optimizer["momentum"]
        else:
            expected["optimizer.betas"] = "[0.9, 0.99]"
        assert {name: shown[name] for name in expected} == expected
        assert str(shown["clip"]) == str(trial.params["clip"])
        metrics = {value.name.tag: value.value for value in group.metric_values}
        if trial.curve:
            assert metrics["loss"] == pytest.approx(trial.metrics["loss"])
        failed = group.sessions[0].status == api_pb2.STATUS_FAILURE
        assert failed == (trial.failure is not None)
    assert {trial.params["optimizer"]["name"] for trial in trials.values()} == {"sgd", "adam"}
    assert any(trial.failure for trial in trials.values()), "one has failed"


def _hparams_page(logdir: Path) -> dict[int, Any]:
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(logdir))
    backend = backend_context.Context(TBContext(data_provider=provider))
    context, experiment_id = RequestContext(), ""
    metadata = backend.hparams_metadata(context, experiment_id)
    experiment = backend.experiment_from_metadata(
        context,
        experiment_id,
        True,
        metadata,
        backend.hparams_from_data_provider(context, experiment_id, None),
    )
    names = {info.name for info in experiment.hparam_infos}
    assert {"optimizer.momentum", "optimizer.betas"} <= names, "columns of both conditions"
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING],
        col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
    )
    handler = list_session_groups.Handler(context, backend, experiment_id, request)
    return {int(group.name): group for group in handler.run().session_groups}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("kind")
    return None if kind is None else getattr(value, kind)
