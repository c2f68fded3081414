import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_param_name

from spark_hpo.tracking import projection
from spark_hpo.tracking.projection import Point, RunUpdate, project
from spark_hpo.trial import Failure, FailureKind, Measurement, RankUse, Trial, TrialState, UseSample


def measurement(resource: int, **metrics: float) -> Measurement:
    return Measurement(resource=resource, metrics=metrics, time=1000.5 + resource, seconds=2.0, rows=300)


def a_trial(**changes: object) -> Trial:
    fields: dict[str, object] = {
        "trial_id": 3,
        "params": {"lr": 0.1, "optimizer": {"name": "sgd", "nesterov": None}},
        "state": TrialState.PAUSED,
        "bracket": 1,
        "rung": 0,
        "resource": 2,
        "curve": (measurement(1, accuracy=0.5), measurement(2, accuracy=0.6)),
        "ended_at": 1010.0,
        "changed_at": 17,
    }
    return Trial(**(fields | changes))  # type: ignore[arg-type]


def test_nested_parameters_are_flattened_with_dots() -> None:
    assert project(a_trial()).params == {"lr": "0.1", "optimizer.name": "sgd", "optimizer.nesterov": "None"}


def test_param_texts_keep_an_empty_mapping() -> None:
    assert projection.param_texts({"a": {}, "b": []}) == {"a": "{}", "b": "[]"}


def test_param_texts_cut_long_values_visibly() -> None:
    text = projection.param_texts({"layers": "x" * 7000})["layers"]
    assert len(text) == projection.MAX_PARAM
    assert text.endswith("(cut)")


def test_param_texts_keep_similar_names_apart() -> None:
    texts = projection.param_texts({"a+b": 1, "a*b": 2, "a_b": 3})
    assert sorted(texts.values()) == ["1", "2", "3"]


@settings(deadline=None)
@given(st.text(max_size=300))
def test_name_is_always_one_that_mlflow_accepts(text: str) -> None:
    name = projection.name(text)
    _validate_metric_name(name)
    _validate_param_name(name)
    assert len(name) <= projection.MAX_KEY


def test_project_has_metrics_step_and_time_of_each_epoch() -> None:
    points = project(a_trial()).points
    assert Point(key="accuracy", value=0.6, time_ms=1_002_500, step=2) in points
    assert Point(key="epoch_seconds", value=2.0, time_ms=1_002_500, step=2) in points
    assert Point(key="rows_per_second", value=150.0, time_ms=1_002_500, step=2) in points
    assert len(points) == 6


def test_project_prefers_a_metric_of_the_task() -> None:
    points = project(a_trial(curve=(measurement(1, epoch_seconds=9.0),))).points
    assert [point.value for point in points if point.key == "epoch_seconds"] == [9.0]


def test_project_has_sums_once_the_trial_has_ended() -> None:
    keys = {point.key for point in project(a_trial(state=TrialState.STOPPED)).points}
    assert {"trial_seconds", "rung"} <= keys
    assert "trial_seconds" not in {point.key for point in project(a_trial()).points}


def test_project_has_the_use_of_the_last_assignment() -> None:
    gpu = {"gpu": 0.5, "gpu_memory_bytes": 3_000_000, "gpu_memory_total_bytes": 6_000_000, "gpu_power_w": 9.0}
    processes = {
        "seconds": 10.0,
        "cpu_s": 20.0,
        "cores": 4,
        "memory_bytes": 5_000_000,
        "disk_bytes": 1_000_000,
    }
    first = RankUse(rank=0, waited_s=1.0, stepped_s=3.0, **processes)
    second = RankUse(rank=1, **{**processes, "cpu_s": 40.0}, **gpu)
    assert not project(a_trial(usage=(first, second)), points=2).points
    points = project(a_trial(usage=(first, second), state=TrialState.COMPLETED), points=2).points
    assert {point.key: point.value for point in points if point.key.startswith("system/")} == {
        "system/data_wait_percentage": 25.0,
        "system/cpu_utilization_percentage": 75.0,
        "system/system_memory_usage_megabytes": 5.0,
        "system/disk_read_megabytes": 2.0,
        "system/gpu_1_utilization_percentage": 50.0,
        "system/gpu_1_memory_usage_megabytes": 3.0,
        "system/gpu_1_memory_usage_percentage": 50.0,
        "system/gpu_1_power_usage_watts": 9.0,
    }
    steps = {(point.time_ms, point.step) for point in points if not point.key.startswith("system/")}
    assert steps == {(1_010_000, 2)}


def test_project_has_the_use_of_the_first_rank_over_time() -> None:
    samples = (UseSample(4.0, 0.25, 1e6, 0.5), UseSample(8.0, 0.75, 2e6, 0.0, gpu=0.5, gpu_memory_bytes=3e6))
    trial = a_trial(usage=(RankUse(rank=0, seconds=10.0, samples=samples), RankUse(rank=1, seconds=10.0)))
    trial = replace(trial, ended_at=trial.started_at + 30.0)
    points = [point for point in project(trial).points if point.key.startswith("system/")]
    begin = int(trial.started_at * 1000)
    assert [(p.key, p.value, p.time_ms - begin, p.step) for p in points] == [
        ("system/cpu_utilization_percentage", 25.0, 24_000, 24),
        ("system/system_memory_usage_megabytes", 1.0, 24_000, 24),
        ("system/data_wait_percentage", 50.0, 24_000, 24),
        ("system/cpu_utilization_percentage", 75.0, 28_000, 28),
        ("system/system_memory_usage_megabytes", 2.0, 28_000, 28),
        ("system/data_wait_percentage", 0.0, 28_000, 28),
        ("system/gpu_0_utilization_percentage", 50.0, 28_000, 28),
        ("system/gpu_0_memory_usage_megabytes", 3.0, 28_000, 28),
    ]


def test_project_omits_what_is_written() -> None:
    record = project(a_trial(), written=True, points=1)
    assert record.params == {}
    assert {point.step for point in record.points} == {2}


def test_project_has_the_failure_in_tags() -> None:
    failure = Failure(kind=FailureKind.TRIAL, message="loss is nan", traceback="...")
    tags = project(a_trial(state=TrialState.FAILED, failure=failure)).tags
    assert tags["spark_hpo.failure"] == "loss is nan"
    assert tags["spark_hpo.failure_kind"] == "trial"
    assert tags["spark_hpo.state"] == "failed"


def test_rows_per_second_is_none_without_time() -> None:
    assert projection.rows_per_second([]) is None
    trial = a_trial(curve=())
    assert "spark_hpo.rows_per_second" not in project(trial).tags


@pytest.mark.parametrize(("params", "points"), [(0, 0), (3, 3), (100, 800), (101, 1), (5, 2401)])
def test_batches_keep_the_limits_and_all_entries(params: int, points: int) -> None:
    record = RunUpdate(
        params={f"p{i}": "v" for i in range(params)},
        points=[Point(key="m", value=math.nan, time_ms=i, step=i) for i in range(points)],
        tags={"a": "b"},
    )
    batches = list(record.batches())
    assert sum(len(batch.params) for batch in batches) == params
    assert sum(len(batch.points) for batch in batches) == points
    assert [bool(batch.tags) for batch in batches] == [False] * (len(batches) - 1) + [True]
    for batch in batches:
        assert len(batch.params) <= 100
        assert len(batch.params) + len(batch.points) + len(batch.tags) <= 1000
