"""run_rank trains one rank from a real table to a checkpoint, in this process."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spark_hpo.data.cache.cache_folder import CacheSettings
from spark_hpo.data.readers.arrow_reader import ArrowReader
from spark_hpo.data.table import Table, open_table
from spark_hpo.errors import StorageError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.rank_failure import failure_of
from spark_hpo.train.task import Batch
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, FailureKind, RankUse, Report, Split
from tests.support.tables import write_clusters

PARAMS = {"learning_rate": 0.01, "hidden_units": 8, "dropout": 0.3}


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return open_table(str(write_clusters(tmp_path_factory.mktemp("tables") / "clusters")))


@pytest.fixture
def spec(table: Table, tmp_path: Path) -> RankSpec:
    return RankSpec(
        study_id="study",
        storage=Storage(tmp_path / "study"),
        trainable=TabularTask,
        table=table,
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        settings=TrainingSettings(batch_size=16),
        max_resource=9,
        seed=0,
        reader="arrow",
        shuffle_window=64,
    )


def assignment(start: int, stop: int, path: str | None = None, **params: Any) -> Assignment:
    return Assignment(
        trial_id=4,
        attempt=1,
        params={**PARAMS, **params},
        bracket=0,
        rung=start,
        resource_from=start,
        resource_to=stop,
        checkpoint=path,
        seed=11,
    )


def run(spec: RankSpec, assignment: Assignment) -> Report:
    return run_rank(spec, assignment, rank=0, world_size=1)


def weights(spec: RankSpec, report: Report) -> Mapping[str, Tensor]:
    assert report.checkpoint is not None
    state: Mapping[str, Tensor] = checkpoint.load(spec.storage, report.checkpoint)["model"]
    return state


def test_task_learns_and_reports_each_epoch(spec: RankSpec) -> None:
    report = run(spec, assignment(0, 9))
    assert report.failure is None
    assert [m.resource for m in report.curve] == list(range(1, 10))
    assert report.curve[-1].metrics == report.metrics
    assert report.metrics["accuracy"] > 0.8
    assert report.metrics["train_loss"] < report.curve[0].metrics["train_loss"]
    assert {m.rows for m in report.curve} == {120}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_three_assignments_equal_one_bit_for_bit(spec: RankSpec, precision: Any) -> None:
    spec = replace(spec, settings=replace(spec.settings, precision=precision, clip_norm=0.5))
    first = run(spec, assignment(0, 1))
    second = run(spec, assignment(1, 3, first.checkpoint))
    third = run(spec, assignment(3, 9, second.checkpoint))
    at_once = run(replace(spec, storage=Storage(spec.storage.url + "-other")), assignment(0, 9))
    other = replace(spec, storage=Storage(spec.storage.url + "-other"))
    assert third.metrics == at_once.metrics
    expected = weights(other, at_once)
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(spec, third).items())
    assert [m.metrics for r in (first, second, third) for m in r.curve] == [m.metrics for m in at_once.curve]


def test_task_trains_parts_of_the_rows_as_a_resource(spec: RankSpec) -> None:
    """Nine parts make an epoch: a higher rung continues with the rows that the lower one has not read."""
    settings = replace(spec.settings, evaluate_each_pass=False)
    spec = replace(spec, settings=settings, parts=9)
    first = run(spec, assignment(0, 1))
    second = run(spec, assignment(1, 3, first.checkpoint))
    third = run(spec, assignment(3, 9, second.checkpoint))
    assert [m.resource for r in (first, second, third) for m in r.curve] == [1, 3, 9]
    rows = [m.rows for r in (first, second, third) for m in r.curve]
    assert sum(rows) == 120
    assert rows == [13, 27, 80]  # 1, 2 and 6 ninths, cut at row boundaries
    other = replace(spec, storage=Storage(spec.storage.url + "-other"))
    at_once = run(other, assignment(0, 9))
    assert third.metrics["accuracy"] == at_once.metrics["accuracy"]
    expected = weights(other, at_once)
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(spec, third).items())


def test_second_trial_reads_from_the_node_cache(spec: RankSpec, tmp_path: Path) -> None:
    """The table is deleted before the second trial."""
    copied = tmp_path / "table"
    write_clusters(copied)
    cached = replace(
        spec, table=open_table(str(copied)), node_cache=CacheSettings(folder=str(tmp_path / "cache"))
    )
    first = run(cached, assignment(0, 2))
    shutil.rmtree(copied)
    second = run(cached, replace(assignment(0, 2), trial_id=5))
    assert second.failure is None
    assert second.metrics == first.metrics == run(spec, assignment(0, 2)).metrics


def test_resumed_task_continues_its_random_generators(spec: RankSpec) -> None:
    """Without their states in the checkpoint, dropout would draw the same masks again."""
    first = run(spec, assignment(0, 1))
    assert first.checkpoint is not None
    state = checkpoint.load(spec.storage, first.checkpoint)
    kept = run(spec, assignment(1, 2, first.checkpoint))
    checkpoint.save(spec.storage, "changed.pt", {**state, "generators": []})
    lost = run(spec, assignment(1, 2, "changed.pt"))
    assert kept.metrics != lost.metrics


def test_evaluation_trains_nothing_and_saves_nothing(spec: RankSpec) -> None:
    trained = run(spec, assignment(0, 3))
    before = spec.storage.names("checkpoints/trial-000004")
    tested = run(spec, replace(assignment(3, 3, trained.checkpoint), split=Split.TEST))
    assert tested.failure is None
    assert tested.curve == ()
    assert tested.split is Split.TEST
    assert tested.checkpoint == trained.checkpoint
    assert spec.storage.names("checkpoints/trial-000004") == before
    again = run(spec, assignment(3, 3, trained.checkpoint))
    assert again.metrics["accuracy"] == trained.metrics["accuracy"]


def test_child_trains_its_parents_weights_with_its_own_rate(spec: RankSpec) -> None:
    parent = run(spec, assignment(0, 2))

    def moved(**params: Any) -> float:
        child = run(spec, replace(assignment(2, 3, parent.checkpoint, **params), trial_id=5))
        assert child.failure is None
        pairs = zip(weights(spec, parent).values(), weights(spec, child).values(), strict=True)
        return sum(float((a - b).abs().sum()) for a, b in pairs)

    assert moved(learning_rate=1e-9) < 1e-4 < 0.1 < moved(learning_rate=0.01)
    assert moved(weight_decay=0.01) != moved(weight_decay=5.0)


def test_plateau_ends_training_in_this_rung_and_the_next(spec: RankSpec) -> None:
    spec = replace(spec, settings=replace(spec.settings, patience=1, min_improvement=1.0))
    first = run(spec, assignment(0, 9))
    assert first.resource == 2  # the first epoch counts as an improvement, the second does not
    later = run(spec, assignment(9, 27, first.checkpoint))
    assert later.failure is None
    assert later.curve == ()
    assert later.metrics["accuracy"] == first.metrics["accuracy"]


def test_batch_size_parameter_overrides_the_setting(spec: RankSpec) -> None:
    small = run(spec, assignment(0, 1, batch_size=8))
    large = run(spec, assignment(0, 1, batch_size=120))
    assert small.metrics["train_loss"] != large.metrics["train_loss"]


class Raising(TabularTask):
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        raise ZeroDivisionError("by design")


class Diverging(TabularTask):
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return super().loss(outputs, batch) * math.nan


class First(nn.Module):
    """The first numeric column: [rows, 1]"""

    def forward(self, batch: Batch) -> Tensor:
        return batch["x"].unsqueeze(1)


def returning(method: str, value: Any) -> type[TabularTask]:
    """A task with a method that returns this value."""
    return type("Wrong", (TabularTask,), {method: lambda self, *_, **__: value})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Raising, "ZeroDivisionError: by design"),
        (Diverging, "train_loss is nan"),
        (returning("build_model", None), "build_model"),
        (returning("build_model", TabularTask), "build_model"),
        (returning("build_model", nn.Sequential(First(), nn.Linear(1, 1))), "shape (rows, 2)"),
        (returning("build_optimizer", None), "build_optimizer"),
        (returning("forward", 0.5), "forward"),
        (returning("loss", 0.5), "loss"),
        (returning("loss", torch.zeros(16, requires_grad=True)), "(16,)"),
        (returning("metrics", 0.5), "metrics"),
        (returning("metrics", {"accuracy": 0.5}), "'accuracy'"),
        (returning("metrics", {"accuracy": torch.zeros(())}), "'accuracy'"),
    ],
)
def test_report_of_a_failed_task_names_the_cause(spec: RankSpec, task: Any, message: str) -> None:
    report = run(replace(spec, trainable=task), assignment(0, 1))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.TRIAL
    assert message in report.failure.message
    assert "Traceback" in report.failure.traceback
    assert report.checkpoint is None


def test_failure_names_a_missing_objective(spec: RankSpec) -> None:
    report = run(replace(spec, objective=Objective(metric="auc", mode=Mode.MAX)), assignment(0, 1))
    assert report.failure is not None
    assert report.failure.message == (
        "objective.metric is 'auc', but the task reports accuracy, loss, train_loss"
    )


def test_failure_names_a_missing_extra_objective(spec: RankSpec) -> None:
    objective = replace(spec.objective, extra_objectives=(("latency_ms", Mode.MIN),))
    for trainable in (TabularTask, save_once):
        report = run(replace(spec, trainable=trainable, objective=objective), assignment(0, 1))
        assert report.failure is not None
        assert report.failure.message.startswith("objective.also names 'latency_ms'")
        assert "accuracy" in report.failure.message


def test_extra_objective_must_be_finite_on_validation_only(
    spec: RankSpec,
) -> None:
    accuracy = spec.objective
    spec = replace(
        spec, trainable=OddMetric, objective=replace(accuracy, extra_objectives=(("odd", Mode.MIN),))
    )
    failed = run(spec, assignment(0, 1))
    assert failed.failure is not None
    assert failed.failure.message == "the training has diverged: odd is nan after epoch 1"
    trained = run(replace(spec, trainable=TabularTask, objective=accuracy), assignment(0, 1))
    evaluation = assignment(1, 1, trained.checkpoint)
    failed = run(spec, evaluation)
    assert failed.failure is not None
    assert failed.failure.message == "odd is nan on validation"
    assert run(spec, replace(evaluation, split=Split.TEST)).failure is None


def test_failure_names_a_checkpoint_of_another_model(spec: RankSpec) -> None:
    first = run(spec, assignment(0, 1))
    report = run(spec, assignment(1, 3, first.checkpoint, hidden_units=16))
    assert report.failure is not None
    assert "not of this task and these parameters" in report.failure.message
    assert f"{first.checkpoint}: " in report.failure.message


def cut(state: dict[str, Any]) -> dict[str, Any]:
    return {"model": state["model"]}


def without_layers(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "model": 5}


def of_lists(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "plateau": [], "generators": 3}


@pytest.mark.parametrize("change", [cut, without_layers, of_lists])
def test_failure_names_a_checkpoint_with_wrong_content(spec: RankSpec, change: Any) -> None:
    first = run(spec, assignment(0, 1))
    assert first.checkpoint is not None
    checkpoint.save(spec.storage, first.checkpoint, change(checkpoint.load(spec.storage, first.checkpoint)))
    report = run(spec, assignment(1, 3, first.checkpoint))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.TRIAL
    assert f"{first.checkpoint}: the checkpoint is not of this task" in report.failure.message


def test_failure_names_a_damaged_checkpoint(spec: RankSpec) -> None:
    first = run(spec, assignment(0, 1))
    assert first.checkpoint is not None
    data = spec.storage.read(first.checkpoint) or b""
    spec.storage.write(first.checkpoint, data[: len(data) // 2])
    report = run(spec, assignment(1, 3, first.checkpoint))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.TRIAL
    assert f"{first.checkpoint}: is damaged" in report.failure.message


def test_failure_names_a_missing_checkpoint(spec: RankSpec) -> None:
    report = run(spec, assignment(1, 3, "checkpoints/none.pt"))
    assert report.failure is not None
    assert "checkpoints/none.pt: " in report.failure.message


def test_failure_kind_of_a_missing_file_is_data(spec: RankSpec, tmp_path: Path) -> None:
    moved = open_table(str(write_clusters(tmp_path / "table")))
    (tmp_path / "table/train/part-0.parquet").unlink()
    report = run(replace(spec, table=moved), assignment(0, 1))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.DATA
    assert "part-0.parquet" in report.failure.message


# Functions ----------------------------------------------------------------------------------------------


def fit_line(ctx: Any) -> None:
    model = nn.Linear(2, 2)
    state = ctx.load_checkpoint()
    if state is not None:
        model.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=ctx.params["learning_rate"])

    def outputs(batch: Any) -> Tensor:
        rows: Tensor = model(torch.stack([batch["x"], batch["y"]], dim=1))
        return rows

    def measure() -> dict[str, float]:
        hits = rows = 0.0
        for batch in ctx.batches(ctx.split):
            hits += float((outputs(batch).argmax(1) == batch["side"]).sum())
            rows += len(batch["side"])
        return {"accuracy": hits / rows}

    if ctx.is_evaluation:
        ctx.report(measure())
    for _ in range(*ctx.resource):
        for batch in ctx.batches("train"):
            optimizer.zero_grad()
            nn.functional.cross_entropy(outputs(batch), batch["side"]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        ctx.report(measure(), checkpoint=model.state_dict())


def return_a_number(ctx: Any) -> dict[str, float]:
    return {"accuracy": ctx.params["hidden_units"] / 10}


def report_too_much(ctx: Any) -> None:
    for _ in range(5):
        ctx.report({"accuracy": 0.5})


def report_nothing(ctx: Any) -> None:
    pass


def test_function_trains_resumes_and_is_evaluated(spec: RankSpec) -> None:
    spec = replace(spec, trainable=fit_line)
    first = run(spec, assignment(0, 3, learning_rate=0.5))
    assert first.failure is None
    second = run(spec, assignment(3, 9, first.checkpoint, learning_rate=0.5))
    assert [m.resource for m in second.curve] == [4, 5, 6, 7, 8, 9]
    at_once = run(spec, assignment(0, 9, learning_rate=0.5))
    assert second.metrics == at_once.metrics, "the same batches in the same epochs"
    tested = run(spec, replace(assignment(9, 9, second.checkpoint), split=Split.TEST))
    assert tested.metrics["accuracy"] > 0.7
    assert tested.checkpoint == second.checkpoint


def test_function_may_return_its_metrics_and_need_no_table(spec: RankSpec) -> None:
    report = run(replace(spec, trainable=return_a_number, table=None), assignment(0, 9))
    assert report.failure is None
    assert report.metrics == {"accuracy": 0.8}
    assert report.resource == 9


def test_function_without_checkpoints_starts_from_scratch(spec: RankSpec) -> None:
    starts = []

    def remember(ctx: Any) -> None:
        starts.append(ctx.resource)
        for _ in range(*ctx.resource):
            ctx.report({"accuracy": 0.5})

    report = run(replace(spec, trainable=remember, table=None), assignment(3, 9))
    assert starts == [(0, 9)]
    assert [m.resource for m in report.curve] == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (report_too_much, "got 4"),
        (report_nothing, "returned nothing"),
        (lambda ctx: 0.5, "returned 0.5"),
        (lambda ctx: ctx.report(0.5), "got 0.5"),
        (lambda ctx: ctx.report({"accuracy": "high"}), "got {'accuracy': 'high'}"),
    ],
)
def test_report_of_a_wrong_function_names_the_mistake(spec: RankSpec, function: Any, message: str) -> None:
    report = run(replace(spec, trainable=function), assignment(0, 3))
    assert report.failure is not None
    assert message in report.failure.message


class OddMetric(TabularTask):
    def metrics(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return {**super().metrics(outputs, batch), "odd": torch.full((len(outputs),), math.nan)}


def test_evaluation_omits_metrics_that_are_not_finite(spec: RankSpec) -> None:
    spec = replace(spec, trainable=OddMetric)
    trained = run(spec, assignment(0, 1))
    tested = run(spec, replace(assignment(1, 1, trained.checkpoint), split=Split.TEST))
    assert tested.failure is None
    assert set(tested.metrics) == {"loss", "accuracy"}
    spec = replace(spec, objective=Objective(metric="odd", mode=Mode.MAX))
    failed = run(spec, replace(assignment(1, 1, trained.checkpoint), split=Split.TEST))
    assert failed.failure is not None
    assert failed.failure.message == "odd is nan on test"


def test_report_of_a_plateau_has_the_trained_epochs(spec: RankSpec) -> None:
    spec = replace(spec, settings=replace(spec.settings, patience=1, min_improvement=1.0))
    first = run(spec, assignment(0, 3))
    later = run(spec, assignment(3, 9, first.checkpoint))
    assert (first.resource, later.resource) == (2, 2)
    assert later.checkpoint == first.checkpoint
    assert checkpoint.load(spec.storage, first.checkpoint or "")["resource"] == 2


def save_once(ctx: Any) -> None:
    for epoch in range(*ctx.resource):
        ctx.report({"accuracy": 0.1 * (epoch + 1)}, checkpoint={"epoch": epoch + 1} if epoch == 0 else None)


def test_report_has_no_checkpoint_of_an_earlier_epoch(spec: RankSpec) -> None:
    spec = replace(spec, trainable=save_once, table=None)
    first = run(spec, assignment(0, 1))
    assert first.checkpoint is not None
    later = run(spec, assignment(1, 3, first.checkpoint))
    assert later.resource == 3
    assert later.checkpoint is None


def leave(ctx: Any) -> None:
    raise SystemExit(3)


def save_what_cannot_be_loaded(ctx: Any) -> None:
    ctx.report({"accuracy": 1.0}, resource=ctx.resource.stop, checkpoint={"array": np.zeros(3)})


@pytest.mark.parametrize(
    ("function", "message"),
    [(leave, "SystemExit: 3"), (save_what_cannot_be_loaded, "turn NumPy arrays into tensors")],
)
def test_function_that_exits_is_a_failed_trial(spec: RankSpec, function: Any, message: str) -> None:
    report = run(replace(spec, trainable=function, table=None), assignment(0, 1))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.TRIAL
    assert message in report.failure.message


def mention_nccl(ctx: Any) -> None:
    raise RuntimeError("my own check of the NCCL version failed")


def lose_a_group_of_its_own(ctx: Any) -> None:
    raise torch.distributed.DistBackendError("gloo: Connection reset by peer")


@pytest.mark.parametrize("function", [mention_nccl, lose_a_group_of_its_own])
def test_failure_kind_of_a_single_rank_is_never_a_lost_peer(spec: RankSpec, function: Any) -> None:
    report = run(replace(spec, trainable=function, table=None), assignment(0, 1))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.TRIAL


@pytest.mark.parametrize("function", [mention_nccl, lose_a_group_of_its_own])
def test_failure_kind_of_one_rank_of_several_is_a_lost_peer(function: Any) -> None:
    with pytest.raises(RuntimeError) as raised:
        function(None)
    assert failure_of(raised.value, world_size=2).kind is FailureKind.INFRASTRUCTURE


def test_failure_kind_of_a_storage_outage_is_storage(spec: RankSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(storage: Storage, name: str) -> None:
        raise StorageError(f"{storage.url}/{name}: No space left on device")

    monkeypatch.setattr(Storage, "writing", refuse)
    report = run(spec, assignment(0, 1))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.STORAGE


def test_clip_norm_clips_the_gradient(spec: RankSpec) -> None:
    free = run(spec, assignment(0, 1, dropout=0.0))
    settings = replace(spec.settings, clip_norm=1e-3)
    clipped = run(replace(spec, settings=settings), assignment(0, 1, dropout=0.0))
    assert clipped.metrics["train_loss"] != free.metrics["train_loss"]


def use_batches(ctx: Any) -> dict[str, float]:
    for _ in ctx.batches("train"):
        time.sleep(0.005)
    return {"accuracy": 0.5}


def use_own_reader(ctx: Any) -> dict[str, float]:
    def read() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.03)
            yield number

    for _ in ctx.timed(read()):
        time.sleep(0.001)
    return {"accuracy": 0.5}


def read_no_batches(ctx: Any) -> dict[str, float]:
    return {"accuracy": 0.5}


@pytest.mark.parametrize("trainable", [TabularTask, use_batches])
def test_report_has_the_time_that_steps_waited(
    spec: RankSpec, trainable: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the journal's JSON: the same training waits for a slow reader, and not for a fast one."""

    def measure() -> RankUse:
        report = run(replace(spec, trainable=trainable), assignment(0, 3))
        assert report.failure is None
        copied = Report.from_json(json.loads(json.dumps(report.to_json())))
        assert copied.usage == report.usage
        return copied.usage[0]

    measure()  # the first step of a process imports much
    fast = measure()
    read = ArrowReader.read

    def read_slowly(*arguments: Any) -> Iterator[Any]:
        time.sleep(0.5)
        yield from read(*arguments)

    monkeypatch.setattr(ArrowReader, "read", read_slowly)
    slow = measure()
    assert fast.waited_s is not None
    assert fast.wait_share is not None
    assert slow.waited_s is not None
    assert slow.wait_share is not None
    assert fast.waited_s < 0.5 <= slow.waited_s
    assert slow.wait_share > max(0.5, fast.wait_share)


def test_report_has_the_waits_for_an_own_reader(spec: RankSpec) -> None:
    (use,) = run(replace(spec, trainable=use_own_reader, table=None), assignment(0, 1)).usage
    assert use.wait_share is not None
    assert use.wait_share > 0.8


def test_report_of_a_function_without_batches_has_no_waits(spec: RankSpec) -> None:
    (use,) = run(replace(spec, trainable=read_no_batches, table=None), assignment(0, 1)).usage
    assert use.waited_s is None
    assert use.memory_bytes


def test_report_of_a_failed_rank_has_its_use(spec: RankSpec) -> None:
    report = run(replace(spec, trainable=report_nothing), assignment(0, 1))
    assert report.failure is not None
    assert len(report.usage) == 1
